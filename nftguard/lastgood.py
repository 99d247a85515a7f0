"""The last good policy: what the kernel took last, kept so that a broken file or a reboot never means no protection.

One file, so that it is always of one piece: as comments the fingerprint (`bootscript`), the configuration and the
counters' totals, then the script that builds the table with those totals.

Beside it, while it is needed, the mark of files that were put on trial and never confirmed: those are for `nftguard
apply` or a reload alone to take, not for a start.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nftguard import bootscript, nftscript, policy, state
from nftguard.config import Config
from nftguard.config import load as load_config
from nftguard.model import Counter
from nftguard.network import Network
from nftguard.plan import create

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nftguard.allow import Allowance
    from nftguard.host import Host
    from nftguard.model import Features, Table

UNKNOWN = "unknown"
"""The fingerprint that fits no files."""


@dataclass(frozen=True, slots=True)
class LastGood:
    """A policy that was in force, the counters' totals, and the fingerprint of the files that it came from."""

    config: Config
    counters: Mapping[str, Counter]
    mark: str
    files: str = ""
    """The fingerprint of the configuration's files alone, where it was read from them now; empty where it was not."""

    def table(self, features: Features, host: Host | None = None, allowances: tuple[Allowance, ...] = ()) -> Table:
        """Build its table, the counters with their totals; with what the kernel can do, and what names stand for."""
        table = policy.build(self.config, features, host, allowances)
        return replace(table, counters={name: self.counters.get(name, made) for name, made in table.counters.items()})


def read(config: Path, counters: Mapping[str, Counter]) -> LastGood:
    """Read the policy that the configuration's files ask for by now. Raises ConfigError.

    A file that changes while it is read gets a fingerprint that fits none.
    """
    mark, read_from = bootscript.fingerprint(str(config)), bootscript.fingerprint(str(config), besides=())
    found = load_config(config)
    whole = mark == bootscript.fingerprint(str(config))
    return LastGood(found, counters, mark if whole else UNKNOWN, read_from if whole else "")


def path() -> Path:
    """Name the file."""
    return Path(bootscript.state_dir()) / bootscript.NAME


def save(good: LastGood, features: Features, host: Host | None = None) -> None:
    """Keep the policy, and what names stand for now, but for the network, which may be another at the next boot.

    Raises OSError.

    Where it is that of files in doubt, they are so no longer.
    """
    table = good.table(features, replace(host, network=Network()) if host else None)
    totals = {name: [counter.packets, counter.bytes] for name, counter in table.counters.items() if counter.packets}
    comment = json.dumps({"config": dump(good.config), "counters": totals})
    script = nftscript.lines(create(table))
    state.write(path(), f"{bootscript.first_line(good.mark)}# {comment}\n{script}{bootscript.END}", 0o600)
    if good.files and good.files == _doubted():
        _doubt().unlink(missing_ok=True)


def load() -> LastGood | None:
    """Read it back; None where there is none, or where it is not readable or not whole."""
    try:
        with path().open(encoding="utf-8") as stream:
            first, second = stream.readline(), stream.readline()
        kept = json.loads(second.removeprefix("# "))
        counters = {name: Counter(name, int(packets), int(size)) for name, (packets, size) in kept["counters"].items()}
        return LastGood(Config.model_validate(kept["config"]), counters, first.split()[-1])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # pydantic's error is a ValueError
        return None


def doubt(mark: str) -> None:
    """Note that these files are on trial, by their fingerprint, so that it outlives a power cut. Raises OSError."""
    path = _doubt()
    state.write(path, f"{mark}\n", 0o600)
    settle(path.parent)


def settle(folder: Path) -> None:
    """Wait until names are on disk, too: a file's content alone may be there under none. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def in_doubt(config: Path, good: LastGood) -> bool:
    """Whether the files, as they are, were put on trial and never became the last good policy."""
    alone = bootscript.fingerprint(str(config), besides=())  # else an upgrade of the program would lift the doubt
    return alone == _doubted() and good.mark != bootscript.fingerprint(str(config))


def not_confirmed(config: Path) -> str:
    """Say of files in doubt what they are, and what to do."""
    return f"{config} was tried and not confirmed; `nftguard apply` takes it, or edit it"


def _doubt() -> Path:
    return Path(bootscript.state_dir()) / "trial"


def _doubted() -> str:
    try:
        return _doubt().read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def dump(config: Config) -> dict[str, Any]:
    """Write a configuration as it would stand in a file."""
    ports = ("ports", "except_ports")
    found = config.model_dump(mode="json", by_alias=True, exclude={"block": {"__all__": set(ports)}, "log": {"rate"}})
    for block, kept in zip(config.block, found["block"], strict=True):
        kept |= {key: [str(span) for entry in getattr(block, key) for span in entry] for key in ports}
    found["log"]["rate"] = f"{config.log.rate.count}/{config.log.rate.unit} per flow"
    found["service"]["resync"] = f"{config.service.resync}s"
    return found
