"""What of an older set-up would still run beside nftguard, and the commands that end it."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from nftguard.names import clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from nftguard.migrate.rules import Ruleset

_MAX_FILE = 1 << 20  # bytes
_MAX_COMMANDS = 20
_KEEPS = "the old rules stay in force beside nftguard's until they are deleted where they are kept"
_HOOKS = ("if-pre-up.d", "if-up.d")
_SAVED = ("iptables.up.rules", "iptables.rules", "iptables/rules.v4", "iptables/rules.v6", "sysconfig/iptables")


def advice(root: Path, prefixes: Iterable[str]) -> list[str]:
    """Look below `root` (/) for what loads the old rules at boot, and for what filters their log by these prefixes.

    Gives lines to show: what was found, and each command indented below it. What cannot be read is passed over.
    """
    return [*_loaders(root), *_saved(root), *_filters(root, prefixes)]


def undoing(rules: Ruleset, name: str) -> list[str]:
    """Give the same for rules that ufw or firewalld keep in force; `name` is that of a policy. Empty for others."""
    if not rules.undo:
        return []
    commands = [command.replace("policy=NAME", f"policy={shlex.quote(name)}", 1) for command in rules.undo]
    more = [f"and {len(commands) - _MAX_COMMANDS:,} more"] * (len(commands) > _MAX_COMMANDS)
    return [f"{_KEEPS}:", *(f"    {clean(command, 4000)}" for command in commands[:_MAX_COMMANDS]), *more]


def _loaders(root: Path) -> Iterator[str]:
    for name in _HOOKS:
        for path in _files(root / "etc/network" / name):
            if path.stat().st_mode & 0o111 and re.search(r"ip6?tables(-legacy|-nft)?-restore", _text(path)):
                yield f"{_shown(root, path)} loads the old rules whenever an interface comes up; to remove it:"
                yield f"    rm {_quoted(root, path)}"
    for path in (root / "etc/rc.local", root / "etc/network/interfaces"):
        if re.search(r"^[^#\n]*ip6?tables", _text(path), re.MULTILINE):
            yield f"{_shown(root, path)} calls iptables; take those lines out:"
            yield f"    grep -n iptables {_quoted(root, path)}"


def _saved(root: Path) -> Iterator[str]:
    found = [path for name in _SAVED if (path := root / "etc" / name).is_file()]
    for path in found:
        yield f"{_shown(root, path)} holds saved rules; once nothing loads it:"
        yield f"    mv {_quoted(root, path)} {_quoted(root, path)}.old"
    if any(path.parent.name == "iptables" for path in found):
        yield "netfilter-persistent loads those at boot; where nothing else is in them:"
        yield "    systemctl disable netfilter-persistent"


def _filters(root: Path, prefixes: Iterable[str]) -> Iterator[str]:
    # The beginning that a filter for all of them would look for: "IPTABLES TCP-OUT" of "IPTABLES TCP-OUT 25:".
    starts = {start for prefix in prefixes if len(start := re.sub(r"[\d:\s]+$", "", prefix)) >= 4}
    for path in (root / "etc/rsyslog.conf", *_files(root / "etc/rsyslog.d")):
        if any(start in _text(path) for start in starts):
            yield f"{_shown(root, path)} filters on the old log prefix: keep it with the [log] lines at the end of the"
            yield "configuration, else take the filter out:"
            if path.parent.name == "rsyslog.d":
                yield f"    mv {_quoted(root, path)} {_quoted(root, path)}.off && systemctl restart rsyslog"
            else:
                yield f"    editor {_quoted(root, path)} && systemctl restart rsyslog"


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        if not path.is_file():  # a FIFO would be waited for
            return ""
        with path.open("rb") as stream:
            return stream.read(_MAX_FILE).decode(errors="replace")
    except OSError:
        return ""


def _shown(root: Path, path: Path) -> str:
    return f"/{path.relative_to(root)}"


def _quoted(root: Path, path: Path) -> str:
    return shlex.quote(_shown(root, path))
