"""What the names in a configuration stand for on this host: read as it is, and only as far as they are used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from nftguard import values
from nftguard.errors import UnavailableError
from nftguard.host import Host
from nftguard.model import Hook
from nftguard.names import shown
from nftguard.network import Network
from nftguard.who.cgroups import Tree, mounted
from nftguard.who.users import Users
from nftguard.wire import rtnl

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nftguard.config import Config

_ROOT = Path("/sys/fs/cgroup")  # nft looks paths of control groups up below it, wherever v2 is mounted
_PATH = re.compile(r"[A-Za-z0-9:_.@\\/-]+")  # what can stand in quotes in an nft script


class Surroundings:
    """This host, looked at for one configuration after the other."""

    def __init__(self, tree: Callable[[], Tree | None] = lambda: None, etc: Path = Path("/etc")) -> None:
        """Take what gives the control groups, where they are followed."""
        self._tree = tree
        self._users, self._groups = Users(etc / "passwd"), Users(etc / "group")
        self._network: Network | None = None
        self._problem = ""

    def stale(self) -> None:
        """Look at the network anew the next time."""
        self._network = None

    def host(self, config: Config) -> Host:
        """Tell what the names in the configuration stand for now."""
        return Host(
            network=self._look() if _needs_network(config) else Network(),
            users=self._users.ids() if any(block.allow.users for block in config.block) else {},
            groups=self._groups.ids() if any(block.allow.groups for block in config.block) else {},
            units=self.units(config),
        )

    def _look(self) -> Network:
        if self._network is None:
            try:
                self._network, self._problem = rtnl.look(), ""
            except UnavailableError as error:
                self._problem = f"{error}; until it answers, what depends on it lets nothing through"
                return Network()
        return self._network

    def units(self, config: Config) -> Mapping[str, Mapping[str, str]]:
        """Give for each unit that is excepted the ids of its control groups, with their paths as nft wants them."""
        tree = self._tree()
        if tree is None or not tree.root.is_relative_to(_ROOT):
            return {}
        return {unit: groups(tree, unit) for unit in needs_units(config)}

    def problems(self, config: Config) -> tuple[str, ...]:
        """Tell what in the configuration stands for nothing on this host, so that nothing passes for it."""
        found = []
        for block in config.block:
            for what, listed, known in (
                ("user", block.allow.users, self._users.ids()),
                ("group", block.allow.groups, self._groups.ids()),
            ):
                missing = [word for word in listed if not word.isdigit() and word not in known]
                found += [
                    f"block {block.name} allows the {what} {shown(word)}, which is not in /etc/"
                    f"{'passwd' if what == 'user' else 'group'}: nothing passes for it until it is"
                    for word in missing
                ]
        if needs_units(config) and self._tree() is None:
            found.append("units are allowed, but control groups cannot be followed here: nothing passes for them")
        if self._problem:
            found.append(self._problem)
        return tuple(found)


def needs_units(config: Config) -> set[str]:
    """Name the units that a configuration excepts."""
    return {unit for block in config.block for unit in block.allow.units}


def _needs_network(config: Config) -> bool:
    return any(
        Hook.FORWARD in block.hooks
        or Hook.BRIDGE in block.hooks
        or values.LOCAL in (*block.allow.to, *block.allow.from_)
        for block in config.block
    )


def groups(tree: Tree, unit: str) -> dict[str, str]:
    """Give the ids of a unit's control groups, and for each its path below /sys/fs/cgroup."""
    at = str(tree.root.relative_to(_ROOT)).removeprefix(".")
    found = {str(number): f"{at}{path}".lstrip("/") for path, number in tree.unit(unit).items()}
    return {number: path for number, path in found.items() if _PATH.fullmatch(path)}


def once(config: Config) -> tuple[Host, tuple[str, ...]]:
    """Look once, for a verb that ends: the host, and what stands for nothing."""
    tree: Tree | None = None
    try:
        if needs_units(config):
            tree = Tree(mounted())
    except UnavailableError:
        pass  # told among the problems
    try:
        here = Surroundings(lambda: tree)
        return here.host(config), here.problems(config)
    finally:
        if tree:
            tree.close()
