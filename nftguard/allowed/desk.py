"""What the daemon does when it is asked to allow or to deny, and when an allowance ends: book, journal and answer.

The rules follow in the pass that comes next.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nftguard.allowed import words
from nftguard.allowed.book import path
from nftguard.allowed.grant import Selection, barred, missing, read, select, waiting
from nftguard.control import Answer
from nftguard.errors import EX_FAILED, NftguardError
from nftguard.journal import log
from nftguard.surroundings import needs_units
from nftguard.wording import local_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from nftguard.allowed.book import Allowances
    from nftguard.allowed.grant import Grant
    from nftguard.config import Config
    from nftguard.control import Request
    from nftguard.host import Host
    from nftguard.keeper import Keeper
    from nftguard.kernel import Kernel
    from nftguard.surroundings import Surroundings


def allow(
    book: Allowances,
    request: Request,
    config: Config,
    look: Callable[[Grant], Host],
    name: Callable[[int], str],
    *,
    cgroups: bool,
) -> Answer:
    """Let through what is asked for, as far as `config` blocks it.

    `look` says what the grant's names stand for on this host, `name` what a user is called (empty where that is not
    known); `cgroups`: the kernel can tell units.
    """
    try:
        asked = read(request.arguments, _by(request, name))
        ports = barred(config, asked.hook, asked.protocol, asked.ports)
        if not ports:
            raise ValueError(
                f"nothing blocks {asked.protocol}/{words.spans(asked.ports)} on {asked.hook}; `nftguard status` "
                "lists what is blocked"
            )
        grant = replace(asked, ports=ports)
        host = look(grant)
        if why := missing(grant, host, cgroups=cgroups):
            raise ValueError(why)
        until = local_time(book.grant(grant))
    except (ValueError, NftguardError) as error:
        return Answer(EX_FAILED, str(error))
    log().warning("allowed", until=until, **grant.record())
    notes = [f"allowed until {until}: {grant}"]
    if open_ := set(asked.ports) - set(ports):
        notes.append(f"{words.spans(open_)} is not blocked")
    if what := waiting(grant, host):
        notes.append(what)
    return Answer(0, "; ".join(notes))


def deny(book: Allowances, request: Request, name: Callable[[int], str]) -> Answer:
    """Take back what is asked for; to find nothing of the kind is a failure."""
    try:
        selection = select(request.arguments)
    except ValueError as error:
        return Answer(EX_FAILED, str(error))
    taken = book.revoke(selection)
    if not taken:
        of = "for a while" if selection == Selection(None, None, None, None) else f"of {selection}"
        return Answer(EX_FAILED, f"nothing is allowed {of}; `nftguard status` lists what is")
    by = _by(request, name)
    for grant in taken:
        log().info("denied", denied_by=by, **grant.record())
    told = "\n".join(f"taken back: {grant}" for grant in taken)
    if book.unsaved:
        return Answer(EX_FAILED, f"{told}\nbut a restart brings it back: {path()} can be neither written nor removed")
    return Answer(0, told)


class Desk:
    """Where the daemon is asked: it knows the policy in force, and this host."""

    def __init__(self, keeper: Keeper, surroundings: Surroundings, follow: Callable[[], None], kernel: Kernel) -> None:
        """Take also what begins to follow control groups, which a grant for a unit needs."""
        self._keeper = keeper
        self._surroundings = surroundings
        self._follow = follow
        self._kernel = kernel

    def answer(self, request: Request) -> Answer:
        """Change the book; where that was done, the exit code is 0 and the rules are to follow."""
        name = self._surroundings.user
        if request.verb == "deny":
            return deny(self._keeper.book, request, name)
        config = self._keeper.policy.config

        def look(grant: Grant) -> Host:
            allowed = tuple(grant.allowances(1))
            if needs_units(config, allowed):
                self._follow()
            return self._surroundings.host(config, allowed)

        return allow(self._keeper.book, request, config, look, name, cgroups=self._kernel.features.cgroups)


def tell(book: Allowances) -> bool:
    """Record what has ended by itself since the last call; whether there was any."""
    ended = book.ended()
    for grant in ended:
        log().info("allowance_ended", **grant.record())
    return bool(ended)


def _by(request: Request, name: Callable[[int], str]) -> str:
    return name(request.by) or f"user {request.by}"
