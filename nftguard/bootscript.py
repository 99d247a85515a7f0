"""The last applied ruleset as an nft script, loaded before anything heavy is imported.

A start is protected some 100 ms earlier this way. The script counts only while the fingerprint in its first line fits:
that of the configuration's file list and contents, of /etc/services (which names ports) and of the program's version.
Modification times would not do: `cp -p` and a removed drop-in leave none behind.

Imported first of all, so this module imports next to nothing (hashlib takes 11 ms, pathlib 16, `_blake2` none).
"""

from __future__ import annotations

import fcntl
import os
from _blake2 import blake2b

from nftguard import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_CONFIG = "/etc/nftguard.toml"
NAME = "last.nft"
_MARK = "# nftguard "
_MAX = 1 << 20  # bytes of one file that count; a longer one is refused as a configuration


def run_dir() -> str:
    """Name the folder for what ends with the boot: the lock, the control socket and status.json."""
    return os.environ.get("RUNTIME_DIRECTORY") or "/run/nftguard"


def state_dir() -> str:
    """Name the folder for what outlives a boot: this script."""
    return os.environ.get("STATE_DIRECTORY") or "/var/lib/nftguard"


def fingerprint(config: str) -> str:
    """Hash everything that decides what the table looks like. A file that cannot be read counts as unreadable."""
    drop_ins = os.path.splitext(config)[0] + ".d"  # noqa: PTH122
    try:
        names = sorted(name for name in os.listdir(drop_ins) if name.endswith(".toml"))  # noqa: PTH208
    except OSError:
        names = []
    state = blake2b(__version__.encode(), digest_size=16)
    for path in [config, *(os.path.join(drop_ins, name) for name in names), "/etc/services"]:  # noqa: PTH118
        try:
            with open(path, "rb") as stream:  # noqa: PTH123
                content = stream.read(_MAX + 1)
        except OSError as error:
            content = f"unreadable: {error.errno}".encode()
        state.update(f"\0{path}\0{len(content)}\0".encode(errors="surrogateescape"))
        state.update(content)
    return state.hexdigest()


def compose(mark: str, script: str) -> str:
    """Put the fingerprint in front of a script that builds the whole table."""
    return f"{_MARK}{mark}\n{script}"


def early(arguments: list[str]) -> Any:
    """Load the script if this is to become the service; return the libnftables context for further use, or None.

    The script creates the table and so leaves one that is there alone. Whatever goes wrong here is found again, and
    told, by the reconcile that follows.
    """
    match arguments:
        case ["run"]:
            config = DEFAULT_CONFIG
        case ["--config", config, "run"]:
            pass
        case _:
            return None
    try:
        with open(os.path.join(state_dir(), NAME), encoding="ascii") as stream:  # noqa: PTH118, PTH123
            if stream.readline() != f"{_MARK}{fingerprint(config)}\n" or _running():
                return None
            script = stream.read()
        import nftables

        context = nftables.Nftables()
    except (ImportError, OSError, ValueError):
        return None
    context.cmd(script)
    return context


def _running() -> bool:
    """Whether a daemon holds the lock: then the rules are its business, also when it was told to lift them."""
    try:
        with open(os.path.join(run_dir(), "lock"), "rb") as stream:  # noqa: PTH118, PTH123
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
