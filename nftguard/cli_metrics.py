"""The verb that serves metrics, or writes them to a file."""

from __future__ import annotations

import os
from pathlib import Path

import click

from nftguard.errors import UnavailableError

LISTEN = "127.0.0.1:9736"


@click.command(short_help="Metrics for Prometheus; systemd runs this.")
@click.option(
    "--listen",
    metavar="WHERE",
    multiple=True,
    help=f"ADDRESS:PORT, [ADDRESS]:PORT or unix:/PATH, more than once if need be.  [default: {LISTEN}]",
)
@click.option(
    "--textfile",
    metavar="FILE",
    help="Instead, write them once to a file, whole or not at all, for node_exporter; - prints them.",
)
@click.option(
    "--status",
    metavar="FILE",
    type=click.Path(path_type=Path),
    default="/run/nftguard/status.json",
    show_default=True,
    help="The daemon's last word.",
)
def metrics(listen: tuple[str, ...], textfile: str | None, status: Path) -> None:
    """Serve metrics for Prometheus at /metrics; nftguard-metrics.service runs this.

    Reads nothing but what the running daemon wrote last: needs no privilege, and can neither start, stop nor slow
    it. Where that is missing or too old, nftguard_up is 0.
    """
    if listen and textfile:
        raise click.UsageError("--listen and --textfile exclude each other")
    try:
        from nftguard.metrics import page, serve
    except ImportError as error:
        if not (error.name or "").startswith("prometheus_client"):
            raise
        raise UnavailableError(
            "python's prometheus_client is missing; install the package python3-prometheus-client "
            "(with pip or pipx: nftguard[metrics])"
        ) from None
    if textfile:
        _write(textfile, page.text(status))
        return
    wanted = listen or (LISTEN,)
    sockets = []
    for where in wanted:
        try:
            sockets.append(serve.listen(where))
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--listen") from None
    serve.run(sockets, page.Page(status), lambda: _ready(wanted))


def _write(textfile: str, text: str) -> None:
    from nftguard import state

    if textfile == "-":
        click.echo(text, nl=False)
    else:
        state.write(Path(textfile), text)


def _ready(wanted: tuple[str, ...]) -> None:
    click.echo(f"nftguard: metrics are served on {', '.join(wanted)}", err=True)
    if "NOTIFY_SOCKET" in os.environ:
        from nftguard import notify

        notify.ready(f"serving on {', '.join(wanted)}")
