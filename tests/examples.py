"""Configurations for tests: written out, and generated."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from nftguard import config, policy
from nftguard.config import Config

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


@st.composite
def configs(draw: st.DrawFn) -> Config:
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
