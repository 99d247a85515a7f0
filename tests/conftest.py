"""What every test may ask for."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from nftguard.kernel import Nftables
from tests.groups import group
from tests.hosts import Hosts
from tests.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ORIGIN = (21, 22, 23, 25, 109, 110, 143, 465, 587, 993, 995)
"""The eleven ports of the iptables file that nftguard replaces."""


def _why_no_kernel() -> str:
    if os.geteuid():
        return "needs root"
    probe = subprocess.run(["unshare", "-n", "nft", "list", "ruleset"], capture_output=True, text=True, check=False)
    return "" if probe.returncode == 0 else f"needs nf_tables in a network namespace: {probe.stderr.strip()}"


@pytest.fixture(scope="session")
def _kernel_there() -> None:
    if why := _why_no_kernel():
        if os.environ.get("CI"):
            pytest.fail(f"under CI a test of the real kernel must run: {why}")
        pytest.skip(why)


@pytest.fixture
def netns(_kernel_there: None) -> Iterator[Namespace]:
    """A network namespace of the test's own."""
    namespace = Namespace()
    yield namespace
    namespace.close()


@pytest.fixture
def kernel(netns: Namespace) -> Iterator[Nftables]:
    """The real kernel, in a namespace of the test's own."""
    with netns.entered():
        kernel = Nftables()
        yield kernel
        kernel.close()


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of the test's own in place of /run/nftguard and /var/lib/nftguard; the folder that holds both."""
    for variable, name in (("RUNTIME_DIRECTORY", "run"), ("STATE_DIRECTORY", "state")):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    return tmp_path


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """A configuration with the origin's eleven ports."""
    path = tmp_path / "nftguard.toml"
    path.write_text(f'[[block]]\nname = "mail"\nports = {list(ORIGIN)}\n')
    return path


@pytest.fixture
def base() -> Iterator[Path]:
    """A control group of the test's own, in which systemd could have put units."""
    with group() as path:
        yield path


@pytest.fixture
def clock() -> list[float]:
    """A clock that the test moves by hand, in seconds."""
    return [1000.0]


@pytest.fixture(scope="module")
def network(_kernel_there: None) -> Iterator[Hosts]:
    with contextlib.ExitStack() as stack:
        yield Hosts(stack)


@pytest.fixture
def hosts(network: Hosts) -> Iterator[Hosts]:
    """The three hosts, without rules."""
    yield network
    if network.kernel.nfnl.flags() is not None:
        network.guarded.nft("delete table inet nftguard")
    if network.kernel.nfnl.flags("bridge") is not None:
        network.guarded.nft("delete table bridge nftguard")
