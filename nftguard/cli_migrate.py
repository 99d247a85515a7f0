"""The verbs for the first day: import and presets."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nftguard import complete, screen
from nftguard.errors import NftguardError
from nftguard.look import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nftguard.migrate.rules import Ruleset
    from nftguard.migrate.translate import Translation

MAX_FILE = 4 << 20  # bytes; a hundred thousand rules
ROOT = Path("/")
_COMMAND = " " * 6
_LOADED = (
    "rules that are loaded stay in force beside nftguard's until they are deleted or the host restarts; to see them:",
    "    iptables -S; iptables-legacy -S; ip6tables -S",
    "to delete one, put -D for the -A that it is shown with:",
    "    iptables -D OUTPUT -p tcp --dport 25 -j DROP",
)


@click.command("import", short_help="Take over the rules of iptables, ufw or firewalld.")
@click.argument("file", metavar="FILE", shell_complete=complete.files)
def import_(file: str) -> None:
    """Take over what another firewall blocks: print a configuration for it. Changes nothing.

    FILE, or - for the standard input, is one of these; which one is found out:

    \b
    iptables   what iptables-save or iptables -S prints, or a file for
               iptables-restore
    ufw        /etc/ufw/user.rules; what ufw show added or ufw status verbose
               prints
    firewalld  what firewall-cmd --direct --get-all-rules prints, direct.xml, a
               policy's XML

    \b
    nftguard import /etc/iptables.up.rules >/etc/nftguard.toml
    iptables-save | nftguard import - >/etc/nftguard.toml

    The same packets are blocked as before, over IPv4 and IPv6. What cannot be said in a configuration is listed on
    stderr, with what that means, and the exit code is 1 then. So is what else of the old set-up is in the way.
    """
    from nftguard.migrate import leftovers
    from nftguard.wording import many

    shown = "the standard input" if file == "-" else file
    rules = read(shown, _lines(file))
    text, found = translated(shown, rules)
    _say(f"nftguard: {rules.kind}: {many(text.count('[[block]]'), 'block')}")
    _tell(rules, found)
    click.echo(text, nl=False)
    _say("nftguard: what else of the old rules may be about:")
    prefixes = {rule.prefix for rule in found.seen if rule.prefix}
    name = Path(file).stem if file.endswith(".xml") else "NAME"
    for line in (*leftovers.advice(ROOT, prefixes), *(leftovers.undoing(rules, name) or _LOADED)):
        _say(f"  {line}")
    if not text:
        raise NftguardError(f"{shown}: {rules.kind}: nothing in it that nftguard could block")
    if found.findings:
        sys.exit(1)


def translated(shown: str, rules: Ruleset) -> tuple[str, Translation]:
    """Translate rules to the text of a configuration, empty where nothing is blocked, and hold that to `check`.

    Raises NftguardError.
    """
    from nftguard.migrate import blocks
    from nftguard.migrate.translate import translate

    found = translate(rules)
    written = blocks.gather(found.parts)
    if not written:
        return "", found
    head = _head(shown, rules, forward=any("forward" in block.hooks for block in written))
    text = blocks.toml(written, head, found, _named)
    _check(text)
    return text, found


def _head(shown: str, rules: Ruleset, forward: bool) -> list[str]:
    return [
        f"Taken over by `nftguard import` from {shown}: {rules.kind}.",
        "Next: nftguard check, then nftguard plan, which shows the rules; then systemctl enable --now nftguard.",
        "These blocks hold for IPv4 and for IPv6; an address that one of them allows is of one of the two.",
        *(["A forward block stops all that guests and clients send out, but not what comes in to them."] * forward),
        *rules.notes,
    ]


def _tell(rules: Ruleset, found: Translation) -> None:
    from nftguard.migrate.notes import told_left

    if left := told_left(rules, found):
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(left.items()))
        _say(f"nftguard: rules left alone: {kinds}")
    for finding in sorted(found.findings):
        for line in f"nftguard: {finding}".splitlines():
            _say(line)


def _say(line: str) -> None:
    """Write a line to stderr; on a terminal it is folded, but for commands, which are to be copied."""
    if line.startswith(_COMMAND):
        click.echo(line, err=True)
    else:
        screen.say(line, err=True)


def _lines(file: str) -> list[str]:
    if file == "-":
        data = sys.stdin.buffer.read(MAX_FILE + 1)
    else:
        with Path(file).open("rb") as stream:  # a FIFO is welcome: <(iptables-save)
            data = stream.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise NftguardError(f"{file}: is larger than 4 MiB; that is no file of rules")
    return data.decode("utf-8-sig", errors="replace").splitlines()


def read(file: str, lines: Sequence[str]) -> Ruleset:
    """Find out what the lines are, and read them. Raises NftguardError."""
    from nftguard.migrate import firewalld, iptables, ufw

    readers = (ufw.recognised, ufw.read), (firewalld.recognised, firewalld.read), (iptables.recognised, iptables.read)
    for recognised, read in readers:  # ufw's user.rules is iptables' too
        if recognised(lines):
            try:
                return read(lines)
            except NftguardError as error:
                raise NftguardError(f"{file}: {error}") from None
    raise NftguardError(f"{file}: these are no rules of iptables, ufw or firewalld; see nftguard import --help")


def _named(key: str, value: str) -> str:
    """Give the name of a user or a group of this host; the number where it has none."""
    import grp
    import pwd

    from nftguard import values

    try:
        if key == "users" and value.isdecimal():
            return values.account(pwd.getpwuid(int(value)).pw_name)
        if key == "groups" and value.isdecimal():
            return values.account(grp.getgrgid(int(value)).gr_name)
    except (KeyError, OverflowError, ValueError):  # no such id, no such id anywhere, a name that cannot be written
        pass
    return value


def _check(text: str) -> None:
    """Hold the configuration to what `nftguard check` asks. Raises NftguardError."""
    import tempfile

    from nftguard import config
    from nftguard.errors import ConfigError

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nftguard.toml"
        path.write_text(text, encoding="utf-8")
        try:
            config.load(path)
        except ConfigError as error:
            told = "; ".join(f"{problem.key}: {problem.message}" for problem in error.problems)
            raise NftguardError(f"what was translated is no valid configuration: {told}") from None


@click.command(short_help="What is behind @mail and the like?")
@click.argument("name", required=False, shell_complete=complete.presets)
@screen.json_option()
def presets(name: str | None, as_json: bool) -> None:
    """Show what is behind @mail and the like: ports that are blocked together, and why.

    With NAME that one alone. In a configuration: ports = ["@mail", 22], and the protocols that are listed here.
    """
    from nftguard.presets import PRESETS

    wanted = (name or "").removeprefix("@")
    if wanted and wanted not in PRESETS:
        raise click.BadParameter(f"there is {', '.join(f'@{key}' for key in PRESETS)}", param_hint=f"preset {name!r}")
    found = {wanted: PRESETS[wanted]} if wanted else PRESETS
    if as_json:
        document = {
            key: {"ports": [str(ports) for ports in preset.ports], "protocols": preset.protocols, "why": preset.why}
            for key, preset in found.items()
        }
        screen.document(document)
        return
    look = screen.look(sys.stdout)
    prose = replace(look, width=look.width or 80)  # also in a pipe: nobody looks for a line of it
    for number, (key, preset) in enumerate(found.items()):
        ports = " ".join(map(str, preset.ports))
        lines = look.lead(look.fold(f"@{key}  {'/'.join(preset.protocols)} {ports}", 4), f"@{key}", Role.HEAD)
        screen.show([*([""] if number else []), *lines, *prose.fold(f"    {preset.why}", 0)])
