"""The probe that figures are measured with: it sees when a port closes, and when it opens again."""

from __future__ import annotations

import pytest

from bench.namespace import Namespace
from bench.probe import Watch, answering

_CLOSED = (("127.0.0.1", 25), ("::1", 25))
_OPEN = (("127.0.0.1", 26), ("::1", 26))
_BLOCK = """
add table inet t
add chain inet t output { type filter hook output priority filter; }
add rule inet t output tcp dport 25 drop
"""


def block(network: Namespace) -> None:
    network.run("nft", "-f", "-", text=_BLOCK)


def flush(network: Namespace) -> None:
    network.run("nft", "flush", "ruleset")


@pytest.mark.usefixtures("netns")  # which says what is missing where there is no kernel to ask
def test_a_watch_hears_a_port_until_it_is_blocked_and_again_when_it_is_not() -> None:
    with Namespace() as network:
        steps = {50: block, 150: flush}

        def over(watch: Watch) -> bool:
            if step := steps.get(watch.attempts):
                step(network)
            return watch.attempts == 200

        watch = Watch(network, (*_CLOSED, *_OPEN))
        watch.run(lambda: None, over)
        assert {target: len(times) for target, times in watch.heard.items()} == {
            **dict.fromkeys(_CLOSED, 100),
            **dict.fromkeys(_OPEN, 200),
        }


@pytest.mark.usefixtures("netns")
def test_what_is_blocked_does_not_answer() -> None:
    with Namespace() as network:
        assert answering(network, (*_CLOSED, *_OPEN)) == {*_CLOSED, *_OPEN}
        block(network)
        assert answering(network, (*_CLOSED, *_OPEN)) == {*_OPEN}
