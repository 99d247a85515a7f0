"""Virtual machines for tests. They are slow, so that a plain `pytest` leaves this folder out: `make test-vm`.

`machine` is shared by all tests of a module on the same release; they leave it as it was. Disks are built before the
first test, outside of its timeout. `figure` keeps a number that is told at the end.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from builder.system import BuildError
from tests.boot.suites import SUITES, Suite
from tests.vm import disk as disks
from tests.vm.hypervisor import lacking
from tests.vm.machine import VirtualMachine

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from tests.vm.disk import Disk

_HERE = Path(__file__).parent
_TIMEOUT = 600
_built = pytest.StashKey[dict[Suite, "Disk | str"]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give these tests the time that an emulated processor takes."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(_TIMEOUT))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the disks that the tests will ask for: now, while no test's time runs."""
    built = session.config.stash.setdefault(_built, {})
    calls = [getattr(item, "callspec", None) for item in session.items]
    wanted = {call.params["disk"] for call in calls if call and "disk" in call.params}
    if session.config.option.collectonly or not wanted or lacking():
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    for suite in SUITES:
        if suite in wanted:
            try:
                built[suite] = disks.prepare(suite, announce=reporter.write_line if reporter else lambda _: None)
            except (BuildError, OSError) as error:
                built[suite] = f"the disk of {suite} could not be built: {error}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of the machine's journal with a failure."""
    report = yield
    machine = getattr(item, "funcargs", {}).get("machine")
    if report.failed and report.when == "call" and isinstance(machine, VirtualMachine) and machine.state != "off":
        try:
            tail = machine.run(["journalctl", "--no-pager", "--lines=60"], timeout=30).stdout
        except Exception as error:  # noqa: BLE001, RUF100 - a second failure must not hide the first
            tail = f"unreadable: {error}"
        report.sections.append((f"journal of {machine.name}", tail))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell the figures."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties if report.when == "call" else ():
                terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture
def figure(disk: Disk, record_property: Callable[[str, object], None]) -> Callable[[str, object], None]:
    """Keep a figure of this release by its name."""
    return lambda name, value: record_property(f"{disk.suite}: {name}", value)


@pytest.fixture(scope="session", params=SUITES, ids=str)
def disk(request: pytest.FixtureRequest) -> Disk:
    """A Debian release with its kernel and this checkout's nftguard, for a `VirtualMachine`."""
    built = lacking() or request.config.stash[_built][request.param]
    if isinstance(built, str):
        if os.environ.get("CI"):
            pytest.fail(f"under CI a virtual machine must boot: {built}")
        pytest.skip(built)
    return built


@pytest.fixture(scope="module")
def machine(disk: Disk) -> Iterator[VirtualMachine]:
    """A machine that the module's tests share: they leave it as it was."""
    with VirtualMachine(disk) as machine:
        yield machine
