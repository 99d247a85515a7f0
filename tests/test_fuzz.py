"""A short, fixed run of the fuzzer; `make fuzz` does a million."""

from __future__ import annotations

import pytest

from nftguard.wire import nflog
from tests import fuzz


def test_no_message_makes_an_exception_or_a_wrong_field(netns: object) -> None:  # noqa: ARG001 - a kernel is there
    done = fuzz.run(20_000, seed=4)
    assert min(done.values()) > 1000


def test_the_fuzzer_finds_what_is_wrong(netns: object, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    """A field read from two bytes further on."""
    right = nflog._network

    def wrong(packet: bytes) -> tuple[str, str, int, int, int, int]:
        source, destination, number, at, size, ttl = right(packet)
        return source, destination, number, at + 2, size, ttl

    monkeypatch.setattr(nflog, "_network", wrong)
    with pytest.raises(AssertionError, match="nflog"):
        fuzz.run(2000, seed=4)
