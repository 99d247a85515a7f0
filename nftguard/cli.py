"""The command line: thin verbs, each importing what it needs when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nftguard import (
    __version__,
    bootscript,
    cli_allow,
    cli_change,
    cli_explain,
    cli_metrics,
    cli_migrate,
    cli_records,
    cli_resolve,
    cli_try,
    cli_verify,
    complete,
    screen,
)
from nftguard.errors import ConfigError, NftguardError, NotPermittedError

if TYPE_CHECKING:
    from nftguard.kernel import Nftables


class _Verbs(click.Group):
    """Turns our errors into their lines on stderr and their exit codes; no verb ends in a traceback of them."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NftguardError as error:
            screen.fail(ctx, error)
        except BrokenPipeError:
            raise  # click ends quietly
        except OSError as error:
            screen.fail(ctx, NftguardError(f"{error.strerror}{f': {error.filename}' if error.filename else ''}"))

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)  # in the order of their definition, which is that of use


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--config",
    metavar="FILE",
    default=bootscript.DEFAULT_CONFIG,
    show_default=True,
    shell_complete=complete.files,
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
    screen.never_fail_to_print()


@cli.command(short_help="Is the configuration valid?")
@screen.json_option()
@click.pass_context
def check(ctx: click.Context, as_json: bool) -> None:
    """Is the configuration valid, and would the kernel take it?

    Changes nothing. Prints every problem with its file and key, and exits with 78, when not. Without privilege the
    kernel is not asked.
    """
    from nftguard import alone
    from nftguard.desired import wanted
    from nftguard.model import PLAIN
    from nftguard.status import summary

    found = wanted(ctx.meta["config"])
    table, asked = found.table(PLAIN), True
    losses: tuple[str, ...] = ()
    if not as_json:
        screen.complain(found.problems)
    with screen.Wait("asking the kernel"):
        try:
            kernel = _kernel()
            table = found.table(kernel.features)
            kernel.check(table)
            losses = alone.losses(table, kernel)
        except NotPermittedError:
            asked = False
    if as_json:
        warnings = found.problems + losses
        told = {"valid": True, "kernel_asked": asked, "summary": summary(table), "warnings": warnings, "problems": []}
        screen.document(told)
        return
    screen.complain(losses)
    if asked:
        screen.say(f"valid, and the kernel would take it: {summary(table)}")
    else:
        screen.say(f"valid: {summary(table)}; the kernel was not asked (run as root for that)")


@cli.command(short_help="What would apply change?")
@click.option("--exit-code", is_flag=True, help="Exit with 1 when something would change, like git diff.")
@screen.json_option()
@click.pass_context
def plan(ctx: click.Context, exit_code: bool, as_json: bool) -> None:
    """What would `apply` change? Prints the nft script that it would run.

    The script is one transaction: the kernel takes all of it or nothing. It is empty when nothing would change.
    """
    from nftguard.desired import wanted
    from nftguard.nftscript import script, shown
    from nftguard.plan import diff

    with screen.Wait("comparing the rules"):
        kernel = _kernel()
        live, found = kernel.snapshot(), wanted(ctx.meta["config"])
        changes = diff(live, found.table(kernel.features))
        text = script(changes)
    if as_json:
        told = {"changes": len(changes), "found": changes.found, "script": text, "warnings": found.problems}
        screen.document(told)
    else:
        screen.complain(found.problems)
        if changes:
            screen.show(shown(changes.found, text, screen.look(sys.stdout)))
        elif sys.stdout.isatty():
            click.echo("nothing would change", err=True)
    if exit_code and changes:
        sys.exit(1)


cli.add_command(cli_change.apply)
cli.add_command(cli_change.pause)
cli.add_command(cli_change.remove)


@cli.command(short_help="What is blocked, and is it in force?")
@click.argument("blocks", metavar="[BLOCK...]", nargs=-1, shell_complete=complete.blocks)
@click.option("--all", "every", is_flag=True, help="On a terminal, too, list every port of a long list.")
@screen.json_option()
@click.pass_context
def status(ctx: click.Context, blocks: tuple[str, ...], every: bool, as_json: bool) -> None:
    """What is blocked, and who tried? Says so from the kernel's rules, not from what was applied last.

    \b
    exit 0  protected: the kernel's rules are what the configuration says
    exit 1  degraded: rules are in force, but not those; or the configuration
            is refused
    exit 2  unprotected
    exit 3  without privilege: the daemon's last word is too old to count

    With BLOCK only the ports of that block are listed; the rest is about all of them. Without privilege it shows the
    daemon's last word and its age.
    """
    from nftguard import standing
    from nftguard.status import of_blocks, render

    with screen.Wait("reading the rules"):
        try:
            seen = standing.from_kernel(ctx.meta["config"], _kernel())
            found, code = seen.document, seen.exit_code
        except NotPermittedError:
            found, code = standing.last_word()
    try:
        found = of_blocks(found, blocks)
    except ValueError as error:
        raise NftguardError(str(error)) from None
    if as_json:
        screen.document(found)
    else:
        screen.show(render(found, screen.look(sys.stdout), every=every))
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
cli.add_command(cli_metrics.metrics)


def _kernel() -> Nftables:
    from nftguard.kernel import Nftables

    return Nftables()
