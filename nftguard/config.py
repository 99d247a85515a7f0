"""The configuration: /etc/nftguard.toml and its drop-ins to one frozen Config. pydantic goes no further than here."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError

from nftguard import services, sources, values
from nftguard.errors import ConfigError, Problem
from nftguard.model import Action, Hook, Protocol
from nftguard.ports import Ports, resolve
from nftguard.resolver.entries import MAX_NAMES
from nftguard.values import toml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydantic_core import ErrorDetails

MAX_PREFIX = 127  # bytes; NF_LOG_PREFIXLEN - 1, linux/include/uapi/linux/netfilter/nf_log.h


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rate(_Strict):
    """How many lines of one flow are logged: `count` per `unit`."""

    count: int
    unit: Literal["second", "minute", "hour", "day"]


def _rate(value: object) -> Rate:
    count, unit = values.rate(value)
    return Rate(count=count, unit=unit)  # type: ignore[arg-type]  # it is one of the four


_PortList = Annotated[
    tuple[Annotated[tuple[Ports, ...], PlainValidator(services.parse)], ...], BeforeValidator(values.listed)
]
_T = TypeVar("_T")
_Any = Annotated[tuple[_T, ...], BeforeValidator(values.listed)]
_Listed = Annotated[_Any[_T], Field(min_length=1)]
_Accounts = _Any[Annotated[str, PlainValidator(values.account)]]
_Units = _Any[Annotated[str, PlainValidator(values.unit)]]
_Places = _Any[Annotated[str, PlainValidator(values.place)]]
_Interfaces = _Any[Annotated[str, PlainValidator(values.interface)]]


class Allow(_Strict):
    """`allow` of a block: who, and what, it lets through. Each list counts by itself; names are looked up later."""

    users: _Accounts = ()
    groups: _Accounts = ()
    units: _Units = ()
    to: _Places = ()
    from_: Annotated[_Places, Field(alias="from")] = ()
    interfaces: _Interfaces = ()

    @property
    def places(self) -> tuple[str, ...]:
        """List what is looked up among addresses, whichever end of the way they are."""
        return (*self.to, *self.from_)


class Block(_Strict):
    """One `[[block]]`: which ports are closed, where, and how."""

    name: Annotated[str, PlainValidator(values.name)]
    ports: Annotated[_PortList, Field(min_length=1)]
    except_ports: _PortList = ()
    protocols: _Listed[Protocol] = (Protocol.TCP,)
    hooks: _Listed[Hook] = (Hook.OUTPUT,)
    action: Action = Action.DROP
    connections: Literal["all", "new"] = "all"
    allow: Allow = Allow()

    def resolved(self) -> tuple[Ports, ...]:
        """List what is blocked: sorted, without overlap, narrow ranges port by port."""
        flat = [ports for entry in self.ports for ports in entry]
        return resolve(flat, [ports for entry in self.except_ports for ports in entry])


class Log(_Strict):
    """`[log]`: where blocked attempts are written, and how often."""

    target: Literal["journal", "kernel", "none"] = "journal"
    prefix: Annotated[str, PlainValidator(values.prefix)] = "NFTGUARD {hook} {protocol}/{port}: "
    rate: Annotated[Rate, PlainValidator(_rate)] = Rate(count=1, unit="minute")
    group: Annotated[int, Field(ge=0, le=65535, strict=True)] = 25


class Service(_Strict):
    """`[service]`: how the daemon behaves."""

    on_stop: Literal["remove", "keep"] = "remove"
    ownership: Literal["auto", "off"] = "auto"
    resync: Annotated[int, PlainValidator(values.duration)] = 300  # seconds


class Config(_Strict):
    """One whole configuration; that of a single file may still lack its blocks."""

    block: tuple[Block, ...] = ()
    log: Log = Log()
    service: Service = Service()


def load(path: Path, instead: Path | None = None) -> Config:
    """Read the file and its drop-ins; `instead`: another in the place of the file itself.

    Raises ConfigError with every problem of every file.
    """
    problems: list[Problem] = []
    merged = Config()
    owner: dict[str, str] = {}
    main = instead or path
    other = "" if instead else ", or name another file with --config"  # which is no way to name `instead`
    try:
        paths = sources.files(path)
    except OSError as error:
        raise ConfigError((Problem(str(error.filename), "", _os_error(error, other)),)) from None
    for file in [main, *paths[1:]]:
        try:
            part = Config.model_validate(sources.read(file))
        except ValidationError as error:
            problems += [_problem(str(file), detail) for detail in error.errors()]
            continue
        except (OSError, ValueError) as error:
            text = _os_error(error, other) if isinstance(error, OSError) else str(error)
            problems.append(Problem(str(file), "", text))
            continue
        problems += _check(str(file), part, owner)
        merged = _merge(merged, part)
    if not merged.block and not problems:
        problems.append(Problem(str(main), "block", "nothing is blocked; write at least one [[block]] with its ports"))
    names = {place for block in merged.block for place in block.allow.places if values.is_host(place)}
    if len(names) > MAX_NAMES:
        problems.append(Problem(str(main), "allow", f"has {len(names)} host names; at most {MAX_NAMES} are looked up"))
    problems += [] if problems else _check_prefixes(str(main), merged)
    if problems:
        raise ConfigError(tuple(problems))
    return merged


def _os_error(error: OSError, other: str) -> str:
    return f"cannot be read: {error.strerror}; see `ls -l`{other}"


def _merge(base: Config, part: Config) -> Config:
    log, service = part.log, part.service
    return Config(
        block=base.block + part.block,
        log=base.log.model_copy(update={key: getattr(log, key) for key in log.model_fields_set}),
        service=base.service.model_copy(update={key: getattr(service, key) for key in service.model_fields_set}),
    )


def _check(file: str, part: Config, owner: dict[str, str]) -> Iterator[Problem]:
    """Check what one key alone does not show."""
    for index, block in enumerate(part.block):
        key = f"block[{index}]"
        if block.name in owner:
            yield Problem(file, f"{key}.name", f"{block.name!r} is already a block of {owner[block.name]}; rename one")
        owner[block.name] = file
        if not block.resolved():
            yield Problem(file, f"{key}.except_ports", "takes out every port of the block; leave some or drop it")
        if block.connections == "new" and Protocol.UDP in block.protocols:
            yield Problem(
                file, f"{key}.connections", "'new' needs a protocol with connections; give udp a block with 'all'"
            )

        if Hook.BRIDGE in block.hooks and block.action is Action.REJECT:
            yield Problem(
                file,
                f"{key}.action",
                "'reject' cannot be sent from between two ports of a bridge; give bridge a block of its own",
            )
        if Hook.OUTPUT not in block.hooks:
            for kind in ("users", "groups", "units"):
                if getattr(block.allow, kind):
                    yield Problem(
                        file, f"{key}.allow.{kind}", "only what this host sends has a sender; the block lacks output"
                    )


def _check_prefixes(file: str, config: Config) -> Iterator[Problem]:
    if config.log.target != "kernel":
        return
    for block in config.block:
        longest = max(
            (
                config.log.prefix.format(block=block.name, hook=hook, protocol=protocol, port=ports)
                for hook in block.hooks
                for protocol in block.protocols
                for ports in block.resolved()
            ),
            key=len,
        )
        if len(longest) > MAX_PREFIX:
            yield Problem(
                file, "log.prefix", f"gives {len(longest)} characters for {longest!r}; the kernel takes {MAX_PREFIX}"
            )


def _problem(file: str, detail: ErrorDetails) -> Problem:
    """Put pydantic's finding into words for somebody who has never heard of pydantic."""
    loc, kind, value, context = detail["loc"], detail["type"], detail["input"], detail.get("ctx", {})
    key = ""
    for part in loc:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    if kind == "extra_forbidden":
        known = _keys(loc[:-1])
        near = get_close_matches(str(loc[-1]), known, n=1)
        message = f"unknown key; did you mean {near[0]!r}?" if near else f"unknown key; there are {', '.join(known)}"
    elif kind == "missing":
        message = "is missing; every block needs it"
    elif kind == "value_error":
        message = str(context["error"])
    elif kind in {"enum", "literal_error"}:
        choices = re.findall(r"'([^']*)'", str(context["expected"]))
        near = get_close_matches(value, choices, n=1) if isinstance(value, str) else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        message = f"{toml(value)} is not one of {', '.join(map(repr, choices))}{hint}"
    elif kind == "too_short":
        message = "is empty; list at least one"
    elif kind in {"model_type", "model_attributes_type", "tuple_type"}:
        table = "a table: { users = [...], to = [...] }" if key.endswith(".allow") else f"a table: [{key}]"
        message = f"is {toml(value)}; write it as {'[[block]]' if re.fullmatch(r'block(.[0-9]+.)?', key) else table}"
    else:
        message = f"{toml(value)}: {detail['msg'][0].lower()}{detail['msg'][1:]}"
    return Problem(file, key, message)


def _keys(loc: tuple[int | str, ...]) -> list[str]:
    models: dict[str, type[BaseModel]] = {"block": Block, "log": Log, "service": Service}
    model = Allow if "allow" in loc else models[str(loc[0])] if loc else Config
    return [field.alias or name for name, field in model.model_fields.items()]
