"""Configurations for tests: written out, and generated."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from nftguard import config, policy
from nftguard.allow import Allowance
from nftguard.config import Config
from nftguard.host import Host
from nftguard.model import Hook, Protocol
from nftguard.network import Network

if TYPE_CHECKING:
    from nftguard.model import Table


def table_of(text: str) -> Table:
    """Build the table for a configuration given as TOML."""
    return policy.build(config_of(text))


def config_of(text: str) -> Config:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nftguard.toml"
        path.write_text(text)
        return config.load(path)


_NUMBERS = st.integers(1, 65535)
# Few distinct ports, so that blocks overlap; some wide ranges, whose ends meet.
_PORTS = st.one_of(
    st.sampled_from([1, 25, 99, 100, 101, 200, 465, 587, 65535]),
    _NUMBERS,
    st.tuples(st.sampled_from([1, 50, 100, 1024, 6000]), st.sampled_from([0, 1, 50, 63, 64, 100, 5000, 59535])).map(
        lambda pair: f"{pair[0]}-{pair[0] + pair[1]}"
    ),
    st.just("@mail"),
)


_PLACES = st.lists(
    st.sampled_from(
        ["10.0.0.0/24", "10.0.1.0/24", "10.0.0.7", "203.0.113.7", "2001:db8::/32", "::1", "@local", "mx.example"]
    ),
    max_size=5,
)
_ALLOW = st.fixed_dictionaries(
    {},
    optional={
        "users": st.lists(st.sampled_from(["postfix", "nobody", 0, "104", "not-there"]), max_size=3),
        "groups": st.lists(st.sampled_from(["mail", 8, "not-there"]), max_size=2),
        "units": st.lists(st.sampled_from(["postfix.service", "not-there.service"]), max_size=2),
        "to": _PLACES,
        "from": _PLACES,
        "interfaces": st.lists(st.sampled_from(["lo", "wg*", "wg0", "w*", "eth0.5"]), max_size=4),
    },
)
HOST = Host(
    Network(
        uplinks=frozenset({"eth0", "wlan0"}),
        inner=frozenset({"docker0"}),
        outer_ports=frozenset({"eth1"}),
        inner_ports=frozenset({"vnet0", "vnet1"}),
        local=frozenset({"127.0.0.0/8", "10.0.0.0/23", "fe80::/64", "::1/128"}),
    ),
    users={"postfix": 104, "nobody": 65534},
    groups={"mail": 8},
    names={"mx.example": frozenset({"203.0.113.8", "2001:db8:1::1"})},
)
"""What names stand for in tests."""

allowances = st.lists(
    st.builds(
        lambda hook, protocol, port, kind, left: Allowance(hook, protocol, port, kind[0], kind[1], left),
        st.sampled_from(Hook),
        st.sampled_from(Protocol),
        st.sampled_from([25, 465, 587]),
        st.sampled_from(
            [
                ("ports", ""),
                ("users", "postfix"),
                ("groups", "mail"),
                ("to4", "10.0.0.0/8"),
                ("to4", "10.1.0.0/16"),
                ("to4", "mx.example"),
                ("from6", "2001:db8::/32"),
            ]
        ),
        st.integers(600, 3600),
    ).filter(lambda given: given.hook is Hook.OUTPUT or given.kind not in {"users", "groups"}),
    max_size=6,
).map(tuple)


@st.composite
def configs(draw: st.DrawFn, *, exceptions: bool = False) -> Config:
    """Valid configurations of up to four blocks."""
    blocks: list[dict[str, Any]] = []
    for name in draw(
        st.lists(st.sampled_from(["mail", "m-x", "A_1", "output", "tcp"]), min_size=1, max_size=4, unique=True)
    ):
        protocols = draw(st.lists(st.sampled_from(["tcp", "udp", "sctp", "dccp"]), min_size=1, max_size=3))
        blocks.append(
            {
                "name": name,
                "ports": draw(st.lists(_PORTS, min_size=1, max_size=8)),
                "except_ports": draw(st.lists(_NUMBERS, max_size=3)),
                "protocols": protocols,
                "hooks": draw(st.lists(st.sampled_from(["output", "forward", "input"]), min_size=1, max_size=3)),
                "action": draw(st.sampled_from(["drop", "reject"])),
                "connections": draw(st.sampled_from(["all", "new"] if "udp" not in protocols else ["all"])),
            }
        )
        if blocks[-1]["action"] == "drop" and draw(st.booleans()):
            blocks[-1]["hooks"] = [*blocks[-1]["hooks"], "bridge"]
        if exceptions:
            blocks[-1]["allow"] = draw(_ALLOW)
            if "output" not in blocks[-1]["hooks"]:
                for kind in ("users", "groups", "units"):
                    blocks[-1]["allow"].pop(kind, None)
    prefixes = ["NFTGUARD {hook} {protocol}/{port}: ", "X: ", "{block} {{%'*#}} ", "IPTABLES TCP-OUT {port}:"]
    log = {
        "target": draw(st.sampled_from(["journal", "kernel", "none"])),
        "rate": f"{draw(st.integers(1, 9))}/{draw(st.sampled_from(['second', 'minute', 'hour', 'day']))} per flow",
        "prefix": draw(st.sampled_from(prefixes)),
        "group": draw(st.integers(0, 65535)),
    }
    built = Config.model_validate({"block": blocks, "log": log})
    return built.model_copy(
        update={"block": tuple(block for block in built.block if block.resolved()) or built.block[:0]}
    )
