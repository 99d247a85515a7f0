"""One configuration on trial: in force for a while, and gone by itself unless somebody says in time that it may stay.

The daemon keeps the time, so that nobody need be there at the end. Its own death is provided for, too: it starts with
the last good policy, which a trial is not, and does not take files that were tried and not confirmed (`lastgood`).
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nftguard import bootscript, lastgood, state, status
from nftguard.config import Config, load
from nftguard.control import Answer
from nftguard.errors import EX_FAILED, ConfigError, NftguardError, Problem
from nftguard.lastgood import UNKNOWN, LastGood
from nftguard.status import Standing, State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nftguard.control import Request
    from nftguard.keeper import Keeper
    from nftguard.model import Counter

LONGEST = 3600  # seconds
_WORD = re.compile(r"[0-9a-f]{16}")
_MOST = 16 << 20  # characters of an offer; 65,535 listed ports are under 1 MiB
_NAMED = 10  # differences that an answer names


@dataclass(frozen=True, slots=True)
class Trial:
    """What is on trial, and how things were before."""

    policy: LastGood
    word: str
    """By which its asker knows it; nobody confirms another's."""
    due: float
    """When it ends, in seconds on the monotonic clock."""
    until: str
    """The same for people: `15:04:05`."""
    counters: Mapping[str, Counter]
    refused: tuple[str, ...]

    @property
    def standing(self) -> Standing:
        """Say how things stand meanwhile: nobody has decided for what is in force."""
        return Standing(State.DEGRADED, (f"on trial until {self.until}, then the rules before it are back",))


class Trials:
    """The daemon's side: `try`, `confirm` and `rollback`, and the end of the time."""

    def __init__(self, path: Path, keeper: Keeper) -> None:
        self._path = path
        self._keeper = keeper

    @property
    def due(self) -> float | None:
        """Give the moment, on the monotonic clock, at which the trial is over; None where there is none."""
        return self._keeper.trial.due if self._keeper.trial else None

    def end(self, why: str) -> None:
        """Put the rules before it back, if there is a trial."""
        if self._keeper.trial:
            self._keeper.end(why)

    def answer(self, request: Request) -> Answer:
        """Carry out one of the three verbs."""
        word = str(request.arguments.get("trial"))
        if not _WORD.fullmatch(word):
            return Answer(EX_FAILED, "not a trial's name")
        if request.verb == "try":
            return self._begin(request, word)
        trial = self._keeper.trial
        if trial is None or trial.word != word:
            return Answer(EX_FAILED, f"not kept: the trial is over; {self._keeper.bulletin.sentence()}")
        if request.verb == "rollback":
            self._keeper.end("not confirmed")
            return Answer(0, f"not kept: {self._keeper.bulletin.sentence()}")
        try:
            self._keeper.confirm()
        except OSError as error:
            return Answer(EX_FAILED, f"kept until the next start, but not beyond: {error.strerror}: {error.filename}")
        return Answer(0, f"kept: {self._keeper.bulletin.sentence()}")

    def _begin(self, request: Request, word: str) -> Answer:
        keeper = self._keeper
        if keeper.trial:
            return Answer(EX_FAILED, f"another configuration is on trial until {keeper.trial.until}")
        if keeper.bulletin.suspended:
            return Answer(EX_FAILED, f"nothing is blocked, {keeper.bulletin.suspended}; end that with `nftguard apply`")
        if not 1 <= request.seconds <= LONGEST:
            return Answer(EX_FAILED, f"a trial takes 1 to {LONGEST} s")
        try:
            if request.arguments.get("offered"):
                policy = LastGood(offered(word), {}, UNKNOWN)
            else:
                policy = lastgood.read(self._path, {})
                if policy.mark == UNKNOWN:
                    raise NftguardError(f"{self._path} changed while it was read; try again")
            outcome = keeper.begin(policy, word, request.seconds)
        except NftguardError as error:
            return Answer(error.exit_code, str(error))
        except (OSError, ValueError, RecursionError) as error:
            return Answer(EX_FAILED, f"not tried, because it could not be undone or read: {error}")
        assert keeper.trial  # noqa: S101 - it has just begun
        found = outcome.plan.found
        lines = [f"  {difference}" for difference in found[:_NAMED]]
        lines += [f"  and {len(found) - _NAMED} more"] if len(found) > _NAMED else []
        changes = status.told_changes(len(outcome.plan))
        told = f"on trial until {keeper.trial.until}: {status.summary(keeper.bulletin.desired)} ({changes})"
        return Answer(0, "\n".join((told, *lines)))


def clock(seconds: float) -> str:
    """Say what time it is in so many seconds: `15:04:05`."""
    return time.strftime("%H:%M:%S", time.localtime(time.time() + seconds))


def read(config: Path, instead: Path) -> Config:
    """Read what would be the configuration with another main file beside the same drop-ins. Raises ConfigError."""
    with tempfile.TemporaryDirectory(prefix="nftguard-") as folder:
        main, drop_ins = Path(folder) / config.name, f"{config.stem}.d"
        main.symlink_to(instead.absolute())
        (main.parent / drop_ins).symlink_to(config.with_name(drop_ins).absolute())

        def real(text: str) -> str:
            return text.replace(str(main), str(instead)).replace(folder, str(config.parent))

        try:
            return load(main)
        except ConfigError as error:
            problems = (Problem(real(found.file), found.key, real(found.message)) for found in error.problems)
            raise ConfigError(tuple(problems)) from None


def offer(word: str, config: Config) -> Path:
    """Lay down a configuration for the daemon; give its file. Raises OSError."""
    path = _offer(word)
    state.write(path, json.dumps(lastgood.dump(config)), 0o600)
    return path


def offered(word: str) -> Config:
    """Read it back, in the daemon. Raises OSError, ValueError and RecursionError."""
    with _offer(word).open(encoding="utf-8") as stream:
        return Config.model_validate(json.loads(stream.read(_MOST)))


def _offer(word: str) -> Path:
    return Path(bootscript.run_dir()) / f"trial-{word}.json"
