"""Attempts and sums in words, and in the fields of their records. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nftguard import policy
from nftguard.model import Hook
from nftguard.names import shown
from nftguard.wording import endpoint, many

if TYPE_CHECKING:
    from nftguard.attempts.ledger import Moment, Summary
    from nftguard.who.attribution import Finding
    from nftguard.who.clients import Suspicion
    from nftguard.wire.nflog import Attempt

_NAMED = 3  # programs that it may have been
_WAY = {Hook.OUTPUT: "", Hook.FORWARD: "forwarded ", Hook.INPUT: "incoming "}


def what(attempt: Attempt) -> str:
    """Say what was tried: `tcp 203.0.113.7:25`."""
    return f"{_WAY[attempt.hook]}{attempt.protocol} {endpoint(attempt.destination, attempt.port)}"


def by(finding: Finding) -> str:
    """Say who did: `ss-server (shadowsocks.service, uid 998); very likely for its client 198.51.100.4`."""
    culprit = finding.culprit
    names = sorted({shown(one.rpartition("[")[0]) for one in culprit.candidates})
    perhaps = f"; perhaps {', '.join(names[:_NAMED])}{' or another' if len(names) > _NAMED else ''}" if names else ""
    return f"{culprit}{perhaps}{_client(finding.suspicion)}"


def _client(suspicion: Suspicion | None) -> str:
    if suspicion is None:
        return ""
    if not suspicion.clear:
        return "; for which of its clients is not clear"
    return f"; {suspicion.word} for its client {suspicion.client}"


def attempt_fields(attempt: Attempt, finding: Finding, account: int, now: Moment) -> dict[str, object]:
    """Give the fields of a `blocked` record; those that are None or empty are left out. Times are in microseconds."""
    suspicion = finding.suspicion
    clear = suspicion if suspicion and suspicion.clear else None
    at = round(now.wall * 1e6)
    return {
        "block": attempt.block,
        "hook": attempt.hook.value,
        "protocol": attempt.protocol.value,
        "source_port": attempt.source_port,
        "destination": attempt.destination,
        "port": attempt.port,
        "gid": attempt.gid,
        **finding.culprit.lasting(),
        **finding.culprit.passing(),
        "source": attempt.source,
        "interface": attempt.outbound if attempt.hook is Hook.OUTPUT else attempt.inbound,
        "client": clear.client if clear else None,
        "client_confidence": f"{clear.confidence:.2f}" if clear else None,
        "client_basis": suspicion.basis if suspicion else None,
        "clients": " ".join(f"{client}={share:.2f}" for client, share in suspicion.ranked) if suspicion else None,
        "first": at,
        "last": at,
        "account": account,
    }


def summary_fields(summary: Summary) -> dict[str, object]:
    """Give the fields of a `blocked_summary` record."""
    key = policy.counter_key(summary.counter)
    assert key  # noqa: S101 - it is a name that policy made
    block, hook, protocol, ports = key
    client = summary.client
    return {
        "block": block,
        "hook": hook.value,
        "protocol": protocol.value,
        "port": str(ports),
        "packets": summary.packets,
        "bytes": summary.bytes,
        "attempts": summary.attempts,
        "recorded": summary.recorded,
        "destination": summary.destination,
        **(summary.culprit.lasting() if summary.culprit else {}),
        "client": client.address,
        "client_confidence": f"{client.confidence:.2f}" if client.address else None,
        "first": round(summary.first * 1e6),
        "last": round(summary.last * 1e6),
        "account": summary.account or None,
        "text": _sum(summary, f"{protocol} {ports} on {hook}"),
    }


def _sum(summary: Summary, where: str) -> str:
    packets = many(summary.packets, "packet")
    if summary.account:
        text = f"{many(summary.attempts, 'attempt')}, {packets} to {where} from {summary.culprit or 'others'}"
        folded = summary.attempts - summary.recorded
        return f"{text}; {folded:,} without a record of their own" if folded else text
    text = f"{packets} more to {where} were counted and not seen one by one"
    return f"{text}; seen meanwhile: {', '.join(summary.among)}" if summary.among else text
