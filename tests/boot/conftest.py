"""Machines for tests. Each test that takes one runs on every Debian release.

`machine` is the test's own and has just booted; `shared_machine` serves all tests of a module that leave no trace on
it; `image` is for a test that makes its machines itself. `bare` is an image with nftguard's package at hand instead of
installed, as /root/nftguard.deb, and all that it needs in a repository of the machine's own. Images are built before
the first test, outside of its timeout; `python -m tests.boot.image` builds them at any other time.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from builder.system import BuildError
from tests.boot import host
from tests.boot import image as images
from tests.boot.machine import Machine
from tests.boot.suites import SUITES, Suite

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from tests.boot.image import Image

_IMAGES = {"image": images.prepare, "bare": images.bare}
_built = pytest.StashKey[dict[tuple[str, Suite], "Image | str"]]()


def pytest_configure(config: pytest.Config) -> None:
    """Name the mark."""
    config.addinivalue_line(
        "markers", "boot: boots a real Debian; fails under CI where that cannot be, else is skipped"
    )
    config.addinivalue_line(
        "markers", "once(release): shows the same on every Debian, so that only `make test-long` runs it on the others"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what boots, so that `-m "not boot"` leaves it out, and as long what one release shows for all."""
    for item in items:
        if not _IMAGES.keys().isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("boot")
        once, call = item.get_closest_marker("once"), getattr(item, "callspec", None)
        if once and call and str(call.params.get("image")) != once.args[0]:
            item.add_marker("long")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the images that the tests will ask for: now, while no test's time runs."""
    built = session.config.stash.setdefault(_built, {})
    calls = [getattr(item, "callspec", None) for item in session.items]
    wanted = {(kind, call.params[kind]) for call in calls if call for kind in _IMAGES if kind in call.params}
    if session.config.option.collectonly or not wanted or host.lacking():
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    for kind, suite in sorted(wanted, key=str):
        try:
            built[kind, suite] = _IMAGES[kind](suite, announce=reporter.write_line if reporter else lambda _: None)
        except (BuildError, OSError) as error:
            built[kind, suite] = f"the image of {suite} could not be built: {error}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of the machine's journal with a failure."""
    report = yield
    if report.failed and report.when == "call":
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Machine) and value.state != "off":
                try:
                    tail = value.run(["journalctl", "--no-pager", "--lines=60"], timeout=10).stdout
                except Exception as error:  # noqa: BLE001, RUF100 - a second failure must not hide the first
                    tail = f"unreadable: {error}"
                report.sections.append((f"journal of {value.name}", tail))
    return report


@pytest.fixture(scope="session", params=SUITES, ids=str)
def image(request: pytest.FixtureRequest) -> Image:
    """A Debian release with this checkout's nftguard installed, for a `Machine`."""
    return _image(request, "image")


@pytest.fixture(scope="session", params=SUITES, ids=str)
def bare(request: pytest.FixtureRequest) -> Image:
    """A Debian release without nftguard, but with its package in /root and a repository, for a `Machine`."""
    return _image(request, "bare")


def _image(request: pytest.FixtureRequest, kind: str) -> Image:
    if reason := host.lacking():
        if os.environ.get("CI"):
            pytest.fail(f"under CI a machine must boot: {reason}")
        pytest.skip(reason)
    built = request.config.stash[_built][kind, request.param]
    if isinstance(built, str):
        pytest.fail(built)
    return built


@pytest.fixture
def machine(image: Image) -> Iterator[Machine]:
    """A machine of the test's own, just booted."""
    with Machine(image) as machine:
        yield machine


@pytest.fixture(scope="module")
def shared_machine(image: Image) -> Iterator[Machine]:
    """A machine that the module's tests share: they leave it as it was."""
    with Machine(image) as machine:
        yield machine
