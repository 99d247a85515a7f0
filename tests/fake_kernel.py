"""A kernel in memory, held to the same contract as the real one by test_kernel.py.

It copies, applies, and takes the copy over only when every step went through: a transaction.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nftguard.errors import KernelError
from nftguard.model import (
    PLAIN,
    Chain,
    Count,
    Counter,
    DynamicSet,
    Map,
    Match,
    Rule,
    Set,
    Table,
    Update,
    Verdict,
    Vmap,
    family,
)
from nftguard.plan import (
    Add,
    AddElements,
    AddMembers,
    AddRule,
    AddTable,
    Delete,
    DeleteElements,
    DeleteTable,
    Flush,
    Plan,
    Step,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

_PLACES = {"chain": "chains", "map": "maps", "set": "sets", "counter": "counters"}


class FakeKernel:
    """Keeps one table. `refusing`, where it is set, is the reason for which the next transactions are refused."""

    def __init__(self) -> None:
        self.features = PLAIN
        self.version = "1.0.6"
        self.table: Table | None = None
        self.refusing = ""
        self.transactions = 0

    def snapshot(self) -> Table | None:
        return self.table

    def counters(self, families: Iterable[str]) -> dict[str, Counter]:
        found = self.table.counters if self.table else {}
        return {name: counter for name, counter in found.items() if family(name) in families}

    def check(self, table: Table) -> None:
        if self.refusing:
            raise KernelError("build", self.refusing)
        _check_references(table)

    def apply(self, plan: Plan) -> None:
        if not plan:
            return
        self.table = self._result(plan)
        self.transactions += 1

    def _result(self, plan: Plan) -> Table | None:
        if self.refusing:
            raise KernelError("apply", self.refusing)
        table = self.table
        for step in plan.steps + plan.late:
            table = _step(table, step)
        if table:
            _check_references(table)
        return table


def _step(table: Table | None, step: Step) -> Table | None:
    match step:
        case AddTable(flags, of):
            _require(table is None or of not in table.families, "File exists")
            return (
                replace(table, families=table.families | {of})
                if table
                else Table(flags=flags, families=frozenset({of}))
            )
        case DeleteTable(of):
            _require(table is not None and of in table.families, "No such file or directory")
            return _without(table, of) if table else None
    if table is None:
        raise KernelError("apply", "No such file or directory")
    match step:
        case Add(thing):
            return _add(table, thing)
        case Delete(kind, name):
            things = dict(getattr(table, _PLACES[kind]))
            _require(name in things, "No such file or directory")
            if kind == "chain":
                _require(not things[name].rules, "Device or resource busy")
            del things[name]
            changed: dict[str, Any] = {_PLACES[kind]: things}
            return replace(table, **changed)
        case Flush("chain", name):
            return _put(table, replace(_chain(table, name), rules=()))
        case Flush("map", name):
            return _put(table, replace(_map(table, name), elements={}))
        case Flush("set", name):
            return _put(table, replace(_set(table, name), elements=frozenset()))
        case AddMembers(name, members):
            found_set = _set(table, name)
            return _put(table, replace(found_set, elements=found_set.elements | set(members)))
        case DeleteElements(name, keys) if name in table.sets:
            found_set = _set(table, name)
            _require(set(keys) <= found_set.elements, "No such file or directory")
            return _put(table, replace(found_set, elements=found_set.elements - set(map(str, keys))))
        case AddRule(chain, rule):
            found = _chain(table, chain)
            return _put(table, replace(found, rules=(*found.rules, rule)))
        case AddElements(name, elements):
            found_map = _map(table, name)
            taken = {ports: goal for ports, goal in found_map.elements.items() if ports in elements}
            _require(all(elements[ports] == goal for ports, goal in taken.items()), "File exists")
            return _put(table, replace(found_map, elements={**found_map.elements, **elements}))
        case DeleteElements(name, keys):
            found_map = _map(table, name)
            _require(all(key in found_map.elements for key in keys), "No such file or directory")
            left = {ports: goal for ports, goal in found_map.elements.items() if ports not in keys}
            return _put(table, replace(found_map, elements=left))
    raise AssertionError(step)


def _without(table: Table, of: str) -> Table | None:
    rest = table.families - {of}
    kept: dict[str, Any] = {
        place: {name: thing for name, thing in getattr(table, place).items() if family(name) != of}
        for place in _PLACES.values()
    }
    return replace(table, families=rest, **kept) if rest else None


def _add(table: Table, thing: Chain | Map | DynamicSet | Set | Counter) -> Table:
    match thing:
        case Chain():
            have = table.chains.get(thing.name)
            rules: tuple[Rule, ...] = have.rules if have else ()
            if have and have.base:
                _require(thing.base is not None, "Operation not supported")
            return _put(table, Chain(thing.name, rules, thing.base))
        case Map():
            return _put(
                table, replace(thing, elements=table.maps[thing.name].elements if thing.name in table.maps else {})
            )
        case Counter():
            return table if thing.name in table.counters else _put(table, thing)
        case DynamicSet():
            return _put(table, thing)
        case Set():
            return _put(table, table.sets.get(thing.name, replace(thing, elements=frozenset())))


def _put(table: Table, thing: Chain | Map | DynamicSet | Set | Counter) -> Table:
    place = {Chain: "chains", Map: "maps", DynamicSet: "sets", Set: "sets", Counter: "counters"}[type(thing)]
    changed: dict[str, Any] = {place: {**getattr(table, place), thing.name: thing}}
    return replace(table, **changed)


def _chain(table: Table, name: str) -> Chain:
    _require(name in table.chains, "No such file or directory")
    return table.chains[name]


def _map(table: Table, name: str) -> Map:
    _require(name in table.maps, "No such file or directory")
    return table.maps[name]


def _set(table: Table, name: str) -> Set:
    found = table.sets.get(name)
    if not isinstance(found, Set):
        raise KernelError("apply", "No such file or directory")
    return found


def _check_references(table: Table) -> None:
    """Refuse, as the kernel does, what would leave a rule or an element that refers to nothing."""
    for chain in table.chains.values():
        for statement in (statement for rule in chain.rules for statement in rule):
            match statement:
                case Verdict(target=target) if target:
                    _require(target in table.chains, "Device or resource busy")
                case Vmap(name=name) | Count(name=name):
                    _require(name in table.maps, "Device or resource busy")
                case Update(name=name) | Match(name=name):
                    _require(name in table.sets, "Device or resource busy")
    for goal in (goal for found in table.maps.values() for goal in found.elements.values()):
        if isinstance(goal, Verdict):
            _require(not goal.target or goal.target in table.chains, "Device or resource busy")
        else:
            _require(goal in table.counters, "Device or resource busy")


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise KernelError("apply", otherwise)
