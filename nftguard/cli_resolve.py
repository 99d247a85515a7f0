"""The verb that systemd runs to look host names up."""

from __future__ import annotations

from pathlib import Path

import click

_FILE = click.Path(path_type=Path)


@click.command(short_help="Look up host names; systemd runs this.")
@click.option(
    "--names",
    metavar="FILE",
    type=_FILE,
    default="/run/nftguard/names",
    show_default=True,
    help="What the daemon wants.",
)
@click.option(
    "--answers",
    metavar="FILE",
    type=_FILE,
    default="/run/nftguard-resolver/answers.json",
    show_default=True,
    help="Where the answers go, for the daemon to read.",
)
def resolve(names: Path, answers: Path) -> None:
    """Look up the host names that exceptions list; nftguard-resolver.service runs this.

    Needs no privilege. Ends by itself when the daemon wants no names any more.
    """
    from nftguard.resolver import serve

    serve.run(names, answers, Path("/etc"))
