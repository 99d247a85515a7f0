"""The command line: thin verbs, each importing what it needs when it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from nftguard import (
    __version__,
    bootscript,
    cli_allow,
    cli_explain,
    cli_migrate,
    cli_records,
    cli_resolve,
    cli_try,
    cli_verify,
)
from nftguard.errors import (
    ConfigError,
    NftguardError,
    NotPermittedError,
    UnavailableError,
)

if TYPE_CHECKING:
    from nftguard.control import Answer
    from nftguard.kernel import Nftables


class _Verbs(click.Group):
    """Turns our errors into their lines on stderr and their exit codes; no verb ends in a traceback of them."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NftguardError as error:
            _fail(error)
        except BrokenPipeError:
            raise  # click ends quietly
        except OSError as error:
            _fail(NftguardError(f"{error.strerror}{f': {error.filename}' if error.filename else ''}"))

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)  # in the order of their definition, which is that of use


def _fail(error: NftguardError) -> NoReturn:
    click.echo(f"nftguard: {error}" if not isinstance(error, ConfigError) else str(error), err=True)
    sys.exit(error.exit_code)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--config",
    metavar="FILE",
    default=bootscript.DEFAULT_CONFIG,
    show_default=True,
    help="The configuration; drop-ins beside it, in FILE with .d for .toml, are read after it.",
)
@click.version_option(__version__, prog_name="nftguard")
@click.pass_context
def cli(ctx: click.Context, config: str) -> None:
    """Block TCP ports with nftables, keep them blocked, and say who tried.

    \b
    A first look, changing nothing:   nftguard check && nftguard plan
    From now on, across reboots:      systemctl enable --now nftguard
    After editing the configuration:  nftguard check && systemctl reload nftguard
    How do things stand:              nftguard status
    Who tried:                        nftguard report, or journalctl -u nftguard
    Would this packet pass:           nftguard explain tcp 203.0.113.7:25

    Exit codes: 0 done; 1 failed, or what a verb says; 2 used wrongly; 69 something is missing on this host;
    77 not permitted; 78 the configuration is refused.
    """
    ctx.meta["config"] = Path(config)
    ctx.meta["context"] = ctx.obj


@cli.command(short_help="Is the configuration valid?")
@click.pass_context
def check(ctx: click.Context) -> None:
    """Is the configuration valid, and would the kernel take it?

    Changes nothing. Prints every problem with its file and key, and exits with 78, when not. Without privilege the
    kernel is not asked.
    """
    from nftguard import alone
    from nftguard.desired import wanted
    from nftguard.model import PLAIN
    from nftguard.status import summary

    found = wanted(ctx.meta["config"])
    _complain(found.problems)
    try:
        kernel = _kernel()
        table = found.table(kernel.features)
        kernel.check(table)
        _complain(alone.losses(table, kernel))
    except NotPermittedError:
        click.echo(f"valid: {summary(found.table(PLAIN))}; the kernel was not asked (run as root for that)")
        return
    click.echo(f"valid, and the kernel would take it: {summary(table)}")


@cli.command(short_help="What would apply change?")
@click.option("--exit-code", is_flag=True, help="Exit with 1 when something would change, like git diff.")
@click.pass_context
def plan(ctx: click.Context, exit_code: bool) -> None:
    """What would `apply` change? Prints the nft script that it would run.

    The script is one transaction: the kernel takes all of it or nothing. Nothing is printed when nothing would change.
    """
    from nftguard.desired import wanted
    from nftguard.nftscript import script
    from nftguard.plan import diff

    kernel = _kernel()
    live, found = kernel.snapshot(), wanted(ctx.meta["config"])
    _complain(found.problems)
    changes = diff(live, found.table(kernel.features))
    for difference in changes.found:
        click.echo(f"# {difference}")
    click.echo(script(changes), nl=False)
    if exit_code and changes:
        sys.exit(1)


@cli.command(short_help="Make the rules what the configuration says.")
@click.option("--force", is_flag=True, help="Also when it cuts off your SSH session or a service of this host.")
@click.pass_context
def apply(ctx: click.Context, force: bool) -> None:
    """Make the kernel's rules what the configuration says, once.

    Asks the daemon where one runs, so that this is also a reload that waits for its outcome. What fits already is not
    touched, and keeps its counters. What would cut off your own SSH session, or block incoming connections to a port
    on which this host listens, is named and not done.
    """
    from nftguard import alone, control

    if not force:
        alone.guard(ctx.meta["config"], _kernel())
    if answer := control.ask("apply", ctx.meta["config"]):
        _print(answer)
    done, problems = alone.apply(ctx.meta["config"])
    _complain(problems)
    click.echo(done)


@cli.command(short_help="Lift the block for a while.")
@click.option("--for", "duration", metavar="TIME", default="10m", show_default=True, help="How long: 30s, 10m or 2h.")
@click.pass_context
def pause(ctx: click.Context, duration: str) -> None:
    """Lift the block for a while; the running daemon puts it back in force by itself.

    `nftguard apply` or a restart ends the pause at once.
    """
    from nftguard import control, values

    try:
        seconds = values.duration(duration)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--for") from None
    if answer := control.ask("pause", ctx.meta["config"], seconds=seconds):
        _print(answer)
    raise UnavailableError("no daemon is running that could end the pause; `nftguard remove` lifts the rules for good")


@cli.command(short_help="Lift the block.")
@click.pass_context
def remove(ctx: click.Context) -> None:
    """Lift the block: delete nftguard's table, and nothing else.

    No error if there is none. A running daemon is told, and waits for `nftguard apply` or a restart before it blocks
    anything again.
    """
    from nftguard import control, plan, state

    if answer := control.ask("remove", ctx.meta["config"]):
        _print(answer)

    with state.lock():
        kernel = _kernel()
        if (live := kernel.snapshot()) is None:
            click.echo("nothing was blocked")
            return
        kernel.apply(plan.remove(live))
    click.echo("rules lifted: nothing is blocked")


@cli.command(short_help="What is blocked, and is it in force?")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, for machines.")
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """What is blocked, and who tried? Says so from the kernel's rules, not from what was applied last.

    \b
    exit 0  protected: the kernel's rules are what the configuration says
    exit 1  degraded: rules are in force, but not those; or the configuration is refused
    exit 2  unprotected
    exit 3  without privilege: the daemon's last word is too old to count

    Without privilege it shows the daemon's last word and its age.
    """
    from nftguard import standing
    from nftguard.status import render

    try:
        seen = standing.from_kernel(ctx.meta["config"], _kernel())
        found, code = seen.document, seen.exit_code
    except NotPermittedError:
        found, code = standing.last_word()
    import shutil

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    click.echo(json.dumps(found) if as_json else render(found, width))
    sys.exit(code)


cli.add_command(cli_verify.verify)
cli.add_command(cli_try.try_)
cli.add_command(cli_allow.allow)
cli.add_command(cli_allow.deny)
cli.add_command(cli_records.watch)
cli.add_command(cli_records.report)
cli.add_command(cli_explain.explain)
cli.add_command(cli_migrate.import_)
cli.add_command(cli_migrate.presets)


@cli.command(short_help="Be the service; systemd runs this.")
@click.pass_context
def run(ctx: click.Context) -> None:
    """Be the service: block, watch, repair, log. systemd runs this; Ctrl-C ends it.

    SIGHUP reloads the configuration. SIGTERM and Ctrl-C lift the rules, unless [service] on_stop is "keep".
    """
    from nftguard import journal
    from nftguard.kernel import Nftables

    sink = journal.configure()
    try:
        from nftguard import notify
        from nftguard.daemon import Daemon

        Daemon(ctx.meta["config"], Nftables(ctx.meta["context"], notify.kept()), sink).run()
    except ConfigError as error:
        journal.log_problems(error)
        sys.exit(error.exit_code)
    except NftguardError as error:
        journal.log().critical("not_started", reason=error)
        sys.exit(error.exit_code)


cli.add_command(cli_resolve.resolve)


def _kernel() -> Nftables:
    from nftguard.kernel import Nftables

    return Nftables()


def _complain(problems: tuple[str, ...]) -> None:
    for problem in problems:
        click.echo(f"nftguard: {problem}", err=True)


def _print(answer: Answer) -> NoReturn:
    from nftguard.hostinfo import to_journald

    if not to_journald(sys.stderr):  # else it is systemctl reload, and the daemon has said it there
        click.echo(answer.text, err=answer.exit != 0)
    sys.exit(answer.exit)
