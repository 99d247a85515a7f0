"""The verbs that open a port for a while, and close it again: allow and deny."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from nftguard import complete, screen
from nftguard.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

_F = TypeVar("_F", bound="Callable[..., Any]")
# As in `model`, which a verb that needs none of it does not import.
HOOKS = ("output", "forward", "input", "bridge")
PROTOCOLS = ("tcp", "udp", "sctp", "dccp")

_WITHOUT = {
    "allow": "no daemon is running that could allow it; start it (systemctl start nftguard), or change `allow` of the "
    "block in the configuration and run `nftguard apply`",
    "deny": "no daemon is running that could take it back; start it (systemctl start nftguard). Until then it ends by "
    "itself: see `nftguard status`",
}
"""What to do where there is no daemon, by the verb."""


def _who(verb: _F) -> _F:
    """Add the options that say whom it concerns."""
    verb = click.option("--anyone", is_flag=True, help="Whoever it is.")(verb)
    for name, metavar, text, words in reversed(
        (
            ("user", "NAME", "What this user of the host sends.", complete.users),
            ("group", "NAME", "What processes of this group send.", complete.groups),
            ("unit", "UNIT", "What this systemd unit sends, like postfix.service.", complete.units),
            ("to", "ADDRESS", "What goes there: an address, a prefix, a host's name, or @local.", complete.places),
            ("from", "ADDRESS", "What comes from there.", complete.places),
        )
    ):
        option = click.option(f"--{name}", f"{name}_", metavar=metavar, default="", shell_complete=words, help=text)
        verb = option(verb)
    return verb


@click.command(short_help="Let somebody through for a while.")
@click.argument("ports", metavar="PORTS...", nargs=-1, required=True, shell_complete=complete.ports)
@click.option(
    "--for",
    "duration",
    metavar="TIME",
    required=True,
    shell_complete=complete.times,
    help="How long: 30s, 30m, 2h, up to 7d.",
)
@_who
@click.option("--protocol", type=click.Choice(PROTOCOLS), default="tcp", show_default=True)
@click.option("--hook", type=click.Choice(HOOKS), default="output", show_default=True, help="Where it is blocked.")
@click.option("--persist", is_flag=True, help="Also after a reboot, as long as time is left.")
@screen.json_option()
@click.pass_context
def allow(ctx: click.Context, /, duration: str, hook: str, protocol: str, persist: bool, **words: Any) -> None:
    """Let somebody through a blocked port for a while, whatever block names it.

    \b
    nftguard allow 587 --user postfix --for 30m
    nftguard allow @mail --to 198.51.100.7 --for 2h

    A port is a number, a range like 6000-6063, a service or a preset; 64 in all at most. One of --user, --group,
    --unit, --to and --from says for whom; give each an allowance of its own. Given again, the new time counts.

    It ends by itself, also without the daemon, and with a reboot. `nftguard status` lists what is allowed, `nftguard
    deny` takes it back. What is meant to last belongs into the configuration, as `allow` of the block.
    """
    from nftguard import values
    from nftguard.allowed import grant

    arguments = _arguments(hook, protocol, words)
    try:
        arguments |= {"seconds": values.duration(duration, grant.MOST_SECONDS), "persist": persist}
        grant.read(arguments)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    _ask(ctx, "allow", arguments)


@click.command(short_help="Take back what was allowed.")
@click.argument("ports", metavar="[PORTS...]", nargs=-1, shell_complete=complete.ports)
@click.option("--all", "all_", is_flag=True, help="Every port.")
@_who
@click.option("--protocol", type=click.Choice(PROTOCOLS), help="Only of this protocol.")
@click.option("--hook", type=click.Choice(HOOKS), help="Only there.")
@screen.json_option()
@click.pass_context
def deny(ctx: click.Context, /, hook: str | None, protocol: str | None, **words: Any) -> None:
    """Take back what `nftguard allow` let through, before its time.

    \b
    nftguard deny 587                  for whomever it was allowed
    nftguard deny 587 --user postfix   for that user alone
    nftguard deny --user postfix       that user, every port
    nftguard deny --all                everything

    Exits with 1 when nothing of the kind is allowed. What the configuration allows is not concerned.
    """
    from nftguard.allowed import grant

    arguments = _arguments(hook or "", protocol or "", words)
    try:
        grant.select(arguments)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    _ask(ctx, "deny", arguments)


def _arguments(hook: str, protocol: str, words: dict[str, Any]) -> dict[str, str | int | bool]:
    """Put options into a request: those that are not given are left out."""
    given = {name.rstrip("_"): value for name, value in words.items() if value and name != "as_json"}
    return given | {"ports": " ".join(words["ports"]), "hook": hook, "protocol": protocol}


def _ask(ctx: click.Context, verb: str, arguments: dict[str, str | int | bool]) -> NoReturn:
    from nftguard import control

    with screen.Wait("asking the daemon"):
        answer = control.ask(verb, ctx.meta["config"], **arguments)
    if answer is None:
        raise UnavailableError(_WITHOUT[verb])
    screen.end(ctx, answer)
