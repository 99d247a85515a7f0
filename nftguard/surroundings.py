"""What the names in a configuration stand for on this host: read as it is, and only as far as they are used."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from nftguard import values
from nftguard.errors import UnavailableError
from nftguard.folder import Watch
from nftguard.host import Host
from nftguard.model import Hook
from nftguard.names import shown
from nftguard.network import Network
from nftguard.resolver import known
from nftguard.who.cgroups import Tree, mounted
from nftguard.who.users import Users
from nftguard.wire import rtnl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from nftguard.allow import Allowance
    from nftguard.config import Config
    from nftguard.resolver.known import Names

_ROOT = Path("/sys/fs/cgroup")  # nft looks paths of control groups up below it, wherever v2 is mounted
_UNIT_FOLDERS = (
    *(f"/{at}/systemd/system" for at in ("etc", "run", "usr/local/lib", "usr/lib", "lib")),
    *(f"/run/systemd/{at}" for at in ("generator", "generator.early", "generator.late", "transient")),
)
_PATH = re.compile(r"[A-Za-z0-9:_.@\\/-]+")  # what can stand in quotes in an nft script


class Surroundings:
    """This host, looked at for one configuration after the other."""

    def __init__(
        self,
        tree: Callable[[], Tree | None] = lambda: None,
        names: Names | None = None,
        etc: Path = Path("/etc"),
        trouble: Callable[[], str] = lambda: "control groups cannot be followed here",
    ) -> None:
        """Take what gives the control groups, where they are followed, and the names that a resolver looks up.

        Without `names` their last good addresses count. `trouble` tells why control groups are not followed, and is
        empty as long as that was not tried.
        """
        self._tree = tree
        self._names = names
        self._users, self._groups = Users(etc / "passwd"), Users(etc / "group")
        self._network: Network | None = None
        self._problem = ""
        self._trouble = trouble
        self._changes = 0
        self._units: Mapping[str, Mapping[str, str]] = {}

    def stale(self) -> None:
        """Look at the network anew the next time."""
        self._network = None

    def want(self, config: Config, allowances: tuple[Allowance, ...] = ()) -> None:
        """Say which host names are wanted from now on: those of the policy in force, and of what is allowed besides."""
        if self._names is not None:
            self._names.want(needs_names(config, allowances))

    def host(self, config: Config, allowances: tuple[Allowance, ...] = ()) -> Host:
        """Tell what the names in the configuration, and of what is allowed for a while, stand for now."""
        kinds = {one.kind for one in allowances}
        near = any(one.value == values.LOCAL for one in allowances)
        return Host(
            network=self._look() if near or _needs_network(config) else Network(),
            users=self._users.ids() if "users" in kinds or any(block.allow.users for block in config.block) else {},
            groups=self._groups.ids() if "groups" in kinds or any(block.allow.groups for block in config.block) else {},
            units=self.units(config, allowances),
            names=self._addresses() if needs_names(config, allowances) else {},
        )

    def user(self, uid: int) -> str:
        """Give a user's name; empty where it has none here."""
        return self._users.name(uid)

    def _addresses(self) -> Mapping[str, frozenset[str]]:
        return known.addresses() if self._names is None else self._names.addresses()

    def _look(self) -> Network:
        if self._network is None:
            try:
                self._network, self._problem = rtnl.look(), ""
            except UnavailableError as error:
                self._problem = f"{error}; until it answers, what depends on it lets nothing through"
                return Network()
        return self._network

    def units(self, config: Config, allowances: tuple[Allowance, ...] = ()) -> Mapping[str, Mapping[str, str]]:
        """Give for each unit that is excepted the ids of its control groups, with their paths as nft wants them."""
        tree = self._tree()
        if tree is None or not tree.root.is_relative_to(_ROOT):
            return {}
        return {unit: groups(tree, unit) for unit in needs_units(config, allowances)}

    def moved(self, config: Config, allowances: tuple[Allowance, ...] = ()) -> bool:
        """Tell whether units that are excepted have other control groups than at the last time.

        To be asked before every wait: whoever looks up whose an attempt is reads what waits at the tree's descriptor,
        too, which then says nothing any more.
        """
        tree = self._tree()
        if tree is None or tree.changes == self._changes:
            return False
        self._changes = tree.changes
        before, self._units = self._units, self.units(config, allowances)
        return before != self._units

    def problems(self, config: Config) -> tuple[str, ...]:
        """Tell what in the configuration stands for nothing on this host, so that nothing passes for it."""
        found = []
        tree = self._tree()
        idle = {unit for unit in needs_units(config) if tree is not None and not tree.unit(unit)}
        files = _unit_files() if idle else set()
        named = any(block.allow.interfaces for block in config.block)
        links = {name for _, name in socket.if_nameindex()} if named else set()
        for block in config.block:
            for what, listed, ids in (
                ("user", block.allow.users, self._users.ids()),
                ("group", block.allow.groups, self._groups.ids()),
            ):
                missing = [word for word in listed if not word.isdigit() and word not in ids]
                found += [
                    f"block {block.name} allows the {what} {shown(word)}{_near(word, ids)}, which is not in /etc/"
                    f"{'passwd' if what == 'user' else 'group'}: nothing passes for it until it is"
                    for word in missing
                ]
            found += [
                f"block {block.name} allows the interface {word}, which this host does not have now"
                for word in block.allow.interfaces
                if not any(link == word or (word.endswith("*") and link.startswith(word[:-1])) for link in links)
            ]
            found += [
                f"block {block.name} allows the unit {unit}{_near(unit, files)}, which does not run and has no file: "
                "nothing passes for it"
                for unit in block.allow.units
                if unit in idle and not _has_file(unit, files)
            ]
        if needs_units(config) and tree is None and (why := self._trouble()):
            found.append(f"units are allowed, but nothing passes for them: {why}")
        if self._problem:
            found.append(self._problem)
        if self._network and any(values.LOCAL in block.allow.places for block in config.block):
            found += [
                f"@local leaves {network} out, which is no neighbourhood" for network in sorted(self._network.vast)
            ]
        if self._names is not None:
            found += self._names.problems()
        else:
            names = needs_names(config)
            there = self._addresses() if names else {}
            found += [
                f"{name}: no address is known yet, so nothing passes for it; the daemon looks it up once it runs"
                for name in sorted(names)
                if not there.get(name)
            ]
        return tuple(found)


def _near(word: str, known: Iterable[str]) -> str:
    near = get_close_matches(word, known, n=1, cutoff=0.8)
    return f" (did you mean {near[0]}?)" if near else ""


def _unit_files() -> set[str]:
    """List the files of units that systemd would find (systemd.unit(5))."""
    found: set[str] = set()
    for folder in _UNIT_FOLDERS:
        with suppress(OSError):
            found.update(os.listdir(folder))  # noqa: PTH208 - names alone are wanted
    return found


def _has_file(unit: str, files: set[str]) -> bool:
    """Whether a unit may be started: from its file or its template's, or without one, as scopes and slices are."""
    name, _, kind = unit.rpartition(".")
    return kind in {"scope", "slice"} or unit in files or f"{name.partition('@')[0]}@.{kind}" in files


def needs_units(config: Config, allowances: tuple[Allowance, ...] = ()) -> set[str]:
    """Name the units that a configuration excepts, or that are allowed for a while."""
    named = {unit for block in config.block for unit in block.allow.units}
    return named | {one.value for one in allowances if one.kind == "units"}


def needs_names(config: Config, allowances: tuple[Allowance, ...] = ()) -> set[str]:
    """Name the hosts that a configuration excepts, or that are allowed for a while."""
    places = [place for block in config.block for place in block.allow.places]
    places += [one.value for one in allowances if one.kind in {"to4", "to6", "from4", "from6"}]
    return {place for place in places if values.is_host(place)}


def _needs_network(config: Config) -> bool:
    return any(
        Hook.FORWARD in block.hooks or Hook.BRIDGE in block.hooks or values.LOCAL in block.allow.places
        for block in config.block
    )


def watched_accounts(etc: Path = Path("/etc")) -> list[Watch]:
    """Listen to the files of users and groups, as far as that can be had: who is missing may appear."""
    found = []
    with suppress(UnavailableError):
        found += [Watch(etc / name) for name in ("passwd", "group")]
    return found


def groups(tree: Tree, unit: str) -> dict[str, str]:
    """Give the ids of a unit's control groups, and for each its path below /sys/fs/cgroup."""
    at = str(tree.root.relative_to(_ROOT)).removeprefix(".")
    found = {str(number): f"{at}{path}".lstrip("/") for path, number in tree.unit(unit).items()}
    return {number: path for number, path in found.items() if _PATH.fullmatch(path)}


def once(config: Config, allowances: tuple[Allowance, ...] = ()) -> tuple[Host, tuple[str, ...]]:
    """Look once, for a verb that ends: the host, and what stands for nothing."""
    tree: Tree | None = None
    try:
        if needs_units(config, allowances):
            tree = Tree(mounted())
    except UnavailableError:
        pass  # told among the problems
    try:
        here = Surroundings(lambda: tree)
        return here.host(config, allowances), here.problems(config)
    finally:
        if tree:
            tree.close()
