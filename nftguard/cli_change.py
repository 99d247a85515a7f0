"""The verbs that change what is in force: apply, pause and remove."""

from __future__ import annotations

import click

from nftguard import complete, screen
from nftguard.errors import EX_CONFIG, UnavailableError


@click.command(short_help="Make the rules what the configuration says.")
@click.option("--force", is_flag=True, help="Also when it cuts off your SSH session or a service of this host.")
@screen.json_option()
@click.pass_context
def apply(ctx: click.Context, force: bool, as_json: bool) -> None:
    """Make the kernel's rules what the configuration says, once.

    Asks the daemon where one runs, so that this is also a reload that waits for its outcome. What fits already is not
    touched, and keeps its counters. What would cut off your own SSH session, or block incoming connections to a port
    on which this host listens, is named and not done.
    """
    from nftguard import alone, config, control
    from nftguard.kernel import Nftables

    path = ctx.meta["config"]
    with screen.Wait("applying the rules"):
        if not force:
            alone.guard(path, Nftables())
        answer = control.ask("apply", path)
        done, problems = ("", ()) if answer else alone.apply(path)
    if answer is None:
        screen.end(ctx, control.Answer(0, done), problems)
    if as_json and answer.exit == EX_CONFIG:
        config.load(path)  # which names each problem
    screen.end(ctx, answer, recorded=True)


@click.command(short_help="Lift the block for a while.")
@click.option(
    "--for",
    "duration",
    metavar="TIME",
    default="10m",
    show_default=True,
    shell_complete=complete.times,
    help="How long: 30s, 10m or 2h.",
)
@screen.json_option()
@click.pass_context
def pause(ctx: click.Context, duration: str, as_json: bool) -> None:  # noqa: ARG001 - `screen` knows it
    """Lift the block for a while; the running daemon puts it back in force by itself.

    `nftguard apply` or a restart ends the pause at once.
    """
    from nftguard import control, values

    try:
        seconds = values.duration(duration)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--for") from None
    if answer := control.ask("pause", ctx.meta["config"], seconds=seconds):
        screen.end(ctx, answer, recorded=True)
    raise UnavailableError("no daemon is running that could end the pause; `nftguard remove` lifts the rules for good")


@click.command(short_help="Lift the block.")
@screen.json_option()
@click.pass_context
def remove(ctx: click.Context, as_json: bool) -> None:  # noqa: ARG001 - `screen` knows it
    """Lift the block: delete nftguard's table, and nothing else.

    No error if there is none. A running daemon is told, and waits for `nftguard apply` or a restart before it blocks
    anything again.
    """
    from nftguard import control, plan, state
    from nftguard.kernel import Nftables

    with screen.Wait("lifting the rules"):
        answer = control.ask("remove", ctx.meta["config"])
        if answer is None:
            with state.lock():
                kernel = Nftables()
                if live := kernel.snapshot():
                    kernel.apply(plan.remove(live))
    if answer is None:
        text = "rules lifted: nothing is blocked" if live else "nothing was blocked"
        screen.end(ctx, control.Answer(0, text))
    screen.end(ctx, answer, recorded=True)
