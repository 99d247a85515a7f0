"""The verb that proves that ports are blocked."""

from __future__ import annotations

import sys

import click

from nftguard import screen


@click.command(short_help="Prove that what is to be blocked is blocked.")
@screen.json_option("Print one JSON document, for monitoring.")
@click.pass_context
def verify(ctx: click.Context, as_json: bool) -> None:
    """Prove that what is to be blocked is blocked.

    Compares the kernel's rules with the configuration, and sends a packet to a port of each block on output, over IPv4
    and IPv6: it must be stopped, and counted. The packets go to addresses of the documentation, as 192.0.2.1 and
    2001:db8::1, with a TTL of 1, so that they reach nobody even if nothing stops them; the counters count them, and the
    daemon leaves them out of its records, alerts and reports. Then it names what no rule here can reach.

    \b
    exit 0   proven
    exit 1   something is not as it should be
    exit 3   nothing is wrong as far as seen, but not everything could be
             tried: no route, an exception in the way
    exit 77  not permitted: it needs root
    """
    from nftguard.verify import verify as proof

    with screen.Wait("trying the ports") as wait:
        found = proof(ctx.meta["config"], wait.step)
    if as_json:
        screen.document(found.document())
    else:
        screen.show(found.render(screen.look(sys.stdout)))
    sys.exit(found.exit_code)
