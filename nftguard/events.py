"""Every kind of event that nftguard records: its MESSAGE_ID and the sentence that people read. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Event:
    """A kind of event. `message_id` never changes: `journalctl MESSAGE_ID=…` and others' scripts rely on it."""

    message_id: str
    sentence: str

    def tell(self, fields: Mapping[str, Any]) -> str:
        """Give the sentence for one event."""
        return self.sentence.format(**fields)


EVENTS = {
    "applied": Event("ab4861976b4e44d1a6f6922009657557", "{summary} ({cause}: {changes})"),
    "repaired": Event("acf1dee5ffcb45ec97a011c92426e9fa", "rules repaired: {found}; {how}"),
    "followed": Event("9d4eef3f5e544e9faa2208e3bd85d343", "exceptions follow this host ({cause}): {found}"),
    "not_allowed": Event("3c26b1cbb0de4af0a0285d869b573fea", "{warning}"),
    "left_out": Event("3c3a26519eb44512b47469d9abc11bb7", "{reason}"),
    "allowed": Event("2b32de15436a4d45b48c2dd740465399", "allowed until {until}: {allowance} (given by {given_by})"),
    "denied": Event("5de4257749ba4ce6b7cb4d7701f6da9b", "no longer allowed: {allowance} (taken back by {denied_by})"),
    "allowance_ended": Event(
        "fce4d44eceaf440b86a20f03c42a48f9", "no longer allowed: {allowance} (its time is over; given by {given_by})"
    ),
    "allowances_ignored": Event(
        "60191c8fd1d64af8ae988aebe61a1ac1", "{path} is of no use, what was allowed for a while ends: {reason}"
    ),
    "fought": Event(
        "16d5a929c84c49b487d4b477c83dac2b",
        "another program keeps changing the rules ({who}): {repairs} repairs so far; they slow down to one every "
        "{interval} s until it stops",
    ),
    "blocked": Event(
        "c34ca139f3274ba5a71e3066578b648c",
        "blocked {what} from {by}",
    ),
    "blocked_summary": Event("9b6b3a9d6a5f4e1c8a0a3c5d7c1f2e64", "{text}"),
    "culprit": Event("5d0c2c1e7a8b4f0f9d3e6b1a2c4f8e90", "new culprit: {by}, first with {what}"),
    "units_unknown": Event("b8d4f7a60c5e4b5d9f3a1e2d7c6b5a40", "not every unit can be told: {reason}"),
    "attempts_lost": Event(
        "7de655c2227e43e0a5a035ca35fb7601", "{lost} blocked attempts could not be told: too many at once or malformed"
    ),
    "attempts_unread": Event("32e273d58f11468d844f638af2011b1c", "{reason}; they are counted all the same"),
    "config_refused": Event("e68299ff74bf4e9cbbc13ecfb5bd8a4b", "{problem}"),
    "renewal_refused": Event(
        "298d3006c0bf420d934f4d8669a29fba", "new configuration refused ({reason}); the last good rules stay in force"
    ),
    "trial_begun": Event("3c077698edd74ae9bda3d438d4d84d75", "on trial until {until}: {summary} ({changes})"),
    "trial_ended": Event("3e8312457ea14e46ab77b790278850b8", "trial ended ({why}): {summary} ({changes})"),
    "apply_failed": Event("ba829a4cef604c9ebcce64b1182c6835", "{reason}; trying again in {retry} s"),
    "not_started": Event("86567b54519b4983b451db057db250b4", "not started: {reason}"),
    "not_lifted": Event("583a552c9c8b40a3951492233fd2e0c5", "the rules could not be lifted: {reason}"),
    "removed": Event("ec9d0f39cbc84e10b250e0f5a7c51eed", "rules lifted ({cause}): nothing is blocked"),
    "kept": Event("dfbaddc4464f477488747db185fe26e2", "stopped; the rules stay in force ({why})"),
    "state_unwritable": Event(
        "3922bf22289e4f0b965e653f0dd2b623",
        "{path} cannot be written: {reason}; the rules are in force all the same",
    ),
    "forward_open": Event(
        "be9e1d5f01e64153854042335ec5d32a",
        "{warning}",
    ),
    "records_dropped": Event(
        "3d4d94c9b7ca48e5b779346e75afda6f", "{dropped} records were dropped while journald took none"
    ),
}
