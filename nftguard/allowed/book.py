"""The book of what is allowed at present, and until when; kept in a file, so that a new process goes on with it.

Time is the kernel's since the boot, suspended time included: setting the clock lengthens nothing. A grant that is to
outlive a reboot ends at the earlier of two moments then: after the time that it had left, and at the date that it was
given for. Where the clock went back meanwhile nobody knows how much of it has passed, and it ends.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nftguard import bootscript, control, folder, state
from nftguard.allowed import words
from nftguard.allowed.grant import Selection
from nftguard.allowed.grant import read as read_grant
from nftguard.errors import NftguardError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nftguard.allow import Allowance
    from nftguard.allowed.grant import Grant

MOST = 256
"""Grants in force at one time."""
KEEP_EVERY = 60.0
"""Seconds between two savings while a grant is to outlive a reboot; a power cut forgets no more of its time."""

_MOST_BYTES = 1 << 20  # 256 grants of 64 ports each are 130 KB
_LAST = 1e12  # seconds; beyond any clock


def boot() -> str:
    """Name this boot of the kernel and, since a container starts anew without it, of the first process here."""
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        first = Path("/proc/1/stat").read_bytes().rpartition(b")")[2].split()[19]  # proc(5): starttime
    except (OSError, LookupError, ValueError):
        return ""
    return f"{kernel} {first.decode(errors='replace')}"


class Clocks(NamedTuple):
    """Where time comes from; each in seconds."""

    boot: str
    """The boot that `elapsed` counts from; empty where it is not known, so that nothing outlives the process."""
    elapsed: Callable[[], float]
    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


def clocks() -> Clocks:
    """Give those of this host."""
    return Clocks(boot(), lambda: time.clock_gettime(time.CLOCK_BOOTTIME))


def path() -> Path:
    """Name the file."""
    return Path(bootscript.state_dir()) / "allowances.json"


def read() -> Allowances:
    """Read the book, for a verb that only looks at it: it is the daemon's, and nothing is to be written.

    While a daemon runs, the book is of this boot. It may know the boot by another name: systemd 252 takes a container's
    own boot_id away from a service with ProtectKernelTunables=.
    """
    return Allowances(lambda *_: None, of_this_boot=control.listening())


@dataclass(frozen=True, slots=True)
class _Held:
    grant: Grant
    end: float  # as `Clocks.elapsed` counts
    until: float  # seconds since the epoch


class Allowances:
    """What is allowed at present.

    Every change is saved at once. `complain` is told where that fails: then the book holds for this process alone.
    """

    def __init__(
        self, complain: Callable[[Path, OSError], None], clock: Clocks | None = None, *, of_this_boot: bool = False
    ) -> None:
        """Read the file; `of_this_boot`: whatever name of a boot stands in it."""
        self._complain = complain
        self._of_this_boot = of_this_boot
        self.unsaved = False
        """Whether the file says still what was taken back: then it comes back with the next process."""
        self._clock = clock or clocks()
        self._held: list[_Held] = []
        self._over: list[Grant] = []
        self._keep_at = math.inf
        self.ignored = ""
        """Why the file was of no use; empty where it was read, or where there is none."""
        try:
            self._load()
        except OSError as error:
            self.ignored = str(error.strerror)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            self._held, self._over = [], []
            self.ignored = f"it is not as nftguard writes it ({str(error)[:200] or type(error).__name__})"

    def grant(self, grant: Grant) -> float:
        """Let through from now on, and give the end, in seconds since the epoch.

        What was granted of the very same before ends with it: the last word counts, be it longer or shorter. Raises
        NftguardError when too many are in force.
        """
        self._end()
        same = Selection(frozenset(grant.ports), (grant.who, grant.value), grant.hook, grant.protocol)
        kept, _ = _split(self._held, same)
        if len(kept) >= MOST:
            raise NftguardError(f"{MOST} allowances are in force already; take one back first, with `nftguard deny`")
        until = self._clock.wall() + grant.seconds
        self._held = [*kept, _Held(grant, self._clock.elapsed() + grant.seconds, until)]
        self._save()
        return until

    def revoke(self, selection: Selection) -> list[Grant]:
        """Take back what fits, a grant's other ports left in force; give what was taken back."""
        self._end()
        kept, taken = _split(self._held, selection)
        if taken:
            self._held = kept
            self._save()
        return taken

    def current(self) -> tuple[Allowance, ...]:
        """Give what is allowed now, for `policy.build`: seconds are rounded up, a grant that has ended is left out."""
        now = self._clock.elapsed()
        return tuple(
            allowance
            for held in self._held
            if held.end > now
            for allowance in held.grant.allowances(math.ceil(held.end - now))
        )

    def due(self) -> float | None:
        """Give the time on the monotonic clock at which `ended` is to be called; None where nothing is in force."""
        if self._over:
            return self._clock.monotonic()
        if not self._held:
            return None
        left = min(held.end for held in self._held) - self._clock.elapsed()
        return min(self._clock.monotonic() + max(0.0, left), self._keep_at)

    def ended(self) -> list[Grant]:
        """Give what has ended since the last call, each once; and save, where that is due."""
        if self._end() or self._clock.monotonic() >= self._keep_at:
            self._save()
        over, self._over = self._over, []
        return over

    def keep(self) -> None:
        """Save how much time is left, as the last thing that a process does."""
        if self._held:
            self._save()

    def listing(self) -> list[dict[str, Any]]:
        """List what is allowed, for status.json: `until` is in seconds since the epoch."""
        now, wall = self._clock.elapsed(), self._clock.wall()
        return [
            {
                "hook": held.grant.hook.value,
                "protocol": held.grant.protocol.value,
                "ports": words.spans(held.grant.ports),
                "who": held.grant.who.value,
                "value": held.grant.value,
                "until": wall + held.end - now,
                "persist": held.grant.persist,
                "given_by": held.grant.by,
            }
            for held in self._held
            if held.end > now
        ]

    def _end(self) -> bool:
        now = self._clock.elapsed()
        over = [held.grant for held in self._held if held.end <= now]
        self._held = [held for held in self._held if held.end > now]
        self._over += over
        return bool(over)

    def _save(self) -> None:
        now = self._clock.elapsed()
        document = {
            "boot": self._clock.boot,
            "saved": self._clock.wall(),
            "grants": [
                held.grant.arguments()
                | {"by": held.grant.by, "end": held.end, "left": held.end - now, "until": held.until}
                for held in self._held
            ],
        }
        lasting = any(held.grant.persist for held in self._held)
        self._keep_at = self._clock.monotonic() + KEEP_EVERY if lasting else math.inf
        self.unsaved = False
        try:
            state.write(path(), json.dumps(document), 0o600)
        except OSError as error:
            try:
                path().unlink(missing_ok=True)  # what was taken back must not come back with the next process
            except OSError:
                self.unsaved = True
            self._complain(path(), error)

    def _load(self) -> None:
        data = folder.read(path(), _MOST_BYTES)
        if data is None:
            return
        if len(data) > _MOST_BYTES:
            raise ValueError("larger than 1 MiB")
        document = json.loads(data)
        same = self._of_this_boot or (bool(self._clock.boot) and document["boot"] == self._clock.boot)
        now, wall = self._clock.elapsed(), self._clock.wall()
        went_on = wall >= _number(document["saved"])
        if len(document["grants"]) > MOST:
            raise ValueError(f"more than {MOST} grants")
        for found in document["grants"]:
            end, left, until = (_number(found.pop(name)) for name in ("end", "left", "until"))
            by = str(found.pop("by"))
            grant = read_grant(found, by)
            rest = 0.0
            if same:
                rest = min(end - now, grant.seconds)
            elif grant.persist and went_on:
                rest = min(left, until - wall, grant.seconds)
            if rest > 0:
                self._held.append(_Held(grant, now + rest, until))
            else:
                self._over.append(grant)
        if self._held:
            self._keep_at = self._clock.monotonic()  # from here another reboot counts; but first the rules


def _split(held: list[_Held], selection: Selection) -> tuple[list[_Held], list[Grant]]:
    """Part what stays from what is taken."""
    kept, taken = [], []
    for one in held:
        ports = selection.taken(one.grant)
        if ports:
            taken.append(replace(one.grant, ports=ports))
        if rest := tuple(port for port in one.grant.ports if port not in ports):
            kept.append(replace(one, grant=replace(one.grant, ports=rest)))
    return kept, taken


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LAST:
        raise ValueError("no time where one belongs")
    return float(value)
