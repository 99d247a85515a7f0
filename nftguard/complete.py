"""What may come next on the command line, for a shell that completes it: quick, and silent where something is amiss."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from nftguard import bootscript

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import click
    from click.shell_completion import CompletionItem

    Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]

UNITS = (
    *(Path(f"/{at}/systemd/system") for at in ("etc", "run", "usr/local/lib", "usr/lib", "lib")),
    Path("/run/systemd/transient"),
)
"""Where systemd finds files of units (systemd.unit(5))."""
RUNNING = Path("/run/systemd/units")
"""Where it has a link for each that runs, "invocation:" and its name."""
NETWORK = Path("/sys/class/net")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*", re.ASCII)
_INTERFACE = re.compile(r"[A-Za-z0-9_.@-]+", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*", re.ASCII)
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]+\.(service|scope|slice|socket|mount|swap)", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?|@?[a-z][a-z0-9-]*", re.ASCII)


def _completer(give: Callable[[click.Context, str], Mapping[str, str] | Iterable[str]]) -> Completer:
    """Make a function that gives words, or words with what they mean, into what click asks; it never fails."""

    @functools.wraps(give)
    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        from click.shell_completion import CompletionItem

        try:
            found = give(ctx, incomplete)
            told = found if isinstance(found, dict) else dict.fromkeys(found)
        except Exception:  # noqa: BLE001, RUF100 - whatever it is, this is not the place to be told of it
            return []
        return [CompletionItem(word, help=about) for word, about in told.items() if word.startswith(incomplete)]

    return complete


def files(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Have the shell complete the name of a file."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


@_completer
def blocks(ctx: click.Context, _incomplete: str) -> list[str]:
    """Give the names of the configuration's blocks."""
    return [name for block in _blocks(ctx) if _NAME.fullmatch(name := str(block.get("name")))]


@_completer
def ports(ctx: click.Context, incomplete: str) -> dict[str, str]:
    """Give what the configuration blocks, presets, and, once a letter is typed, services."""
    words = [str(word) for block in _blocks(ctx) for word in block.get("ports", [])]
    found = dict.fromkeys((word for word in words if _PORT.fullmatch(word)), "blocked") | _presets("@")
    return found | (_services() if incomplete[:1].isalpha() else {})


@_completer
def destination(ctx: click.Context, incomplete: str) -> list[str]:
    """Give ports behind an address and a colon."""
    host, colon, word = incomplete.rpartition(":")
    if not colon or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        return []
    listed = [str(one) for block in _blocks(ctx) for one in block.get("ports", [])]
    found = [one for one in listed if _PORT.fullmatch(one) and one[0] != "@" and "-" not in one]
    return [f"{host}:{one}" for one in (*found, *(_services() if word else ()))]


@_completer
def presets(_ctx: click.Context, incomplete: str) -> dict[str, str]:
    """Give the names of presets."""
    return _presets("@" if incomplete.startswith("@") else "")


@_completer
def users(_ctx: click.Context, _incomplete: str) -> list[str]:
    """Give the users in /etc/passwd; a directory service might be waited for."""
    return _accounts("passwd")


@_completer
def groups(_ctx: click.Context, _incomplete: str) -> list[str]:
    """Give the groups in /etc/group."""
    return _accounts("group")


@_completer
def units(_ctx: click.Context, _incomplete: str) -> list[str]:
    """Give the units that run, or have a file."""
    running = [name.removeprefix("invocation:") for name in _listed(RUNNING)]
    found = {*running, *(name for folder in UNITS for name in _listed(folder))}
    return sorted(name for name in found if _UNIT.fullmatch(name) and "@." not in name)


@_completer
def interfaces(_ctx: click.Context, _incomplete: str) -> list[str]:
    """Give the network interfaces."""
    return sorted(name for name in _listed(NETWORK) if _INTERFACE.fullmatch(name))


@_completer
def times(_ctx: click.Context, incomplete: str) -> list[str]:
    """Give some lengths of time; behind a number, its units."""
    if incomplete.isascii() and incomplete.isdigit():
        return [f"{incomplete}{unit}" for unit in "smhd"]
    return ["30s", "10m", "30m", "1h", "2h", "1d"]


@_completer
def moments(_ctx: click.Context, _incomplete: str) -> list[str]:
    """Give some moments."""
    return ["today", "yesterday", "now", "-1h", "-24h", "-7d"]


@_completer
def places(_ctx: click.Context, _incomplete: str) -> dict[str, str]:
    """Give the one word among addresses."""
    return {"@local": "the networks that this host is on"}


def _blocks(ctx: click.Context) -> list[dict[str, list[object]]]:
    """Read the blocks, unchecked: of all files that can be read. Raises whatever comes of files that are anything."""
    from nftguard import sources

    config = Path(ctx.find_root().params.get("config") or bootscript.DEFAULT_CONFIG)
    found = []
    for file in sources.files(config):
        try:
            found += [block for block in sources.read(file).get("block", []) if isinstance(block, dict)]
        except (OSError, ValueError):
            continue
    return found


def _presets(mark: str) -> dict[str, str]:
    from nftguard.presets import PRESETS

    return {f"{mark}{name}": " ".join(map(str, preset.ports)) for name, preset in PRESETS.items()}


def _services() -> dict[str, str]:
    """Give the services in /etc/services, with port and protocol."""
    from nftguard.services import known_services

    return {name: port for name, port in known_services().items() if port and _WORD.fullmatch(name)}


def _accounts(file: str) -> list[str]:
    from nftguard.who.users import Users

    return [name for name in Users(Path("/etc") / file).ids() if _WORD.fullmatch(name.lstrip("_"))]


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names alone are wanted
    except OSError:
        return []
