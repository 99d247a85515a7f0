"""Every command that the documentation shows is run on real Debians, and prints what the page says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.boot import docs
from tests.boot.base import CHECKOUT
from tests.boot.console import MachineConsole
from tests.boot.machine import Machine
from tests.boot.suites import SUITES, TRIXIE

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

    from tests.boot.image import Image

PAGES = {
    str(path.relative_to(CHECKOUT)): path.read_text(encoding="utf-8")
    for path in (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md")))
}
RUN = {name: page for name, page in PAGES.items() if any(block.kind == "console" for block in docs.blocks(page))}
BARE = [name for name, page in RUN.items() if docs.bare(page)]
INSTALLED = [name for name in RUN if name not in BARE]


def check(name: str, image: Image) -> None:
    """Run a page on a machine of its own."""
    with Machine(image) as machine:
        found = list(docs.run(RUN[name], MachineConsole(machine)))
    assert not found, "\n\n".join([f"{name} on {image.suite}:", *map(str, found)])


def places(names: list[str]) -> list[ParameterSet]:
    """Give each page and release; all but the README are run on the newer one in test-long alone, for their minute."""
    later = pytest.mark.long
    return [
        pytest.param(name, suite, id=f"{suite}-{name}", marks=later if suite == TRIXIE and name != "README.md" else ())
        for name in names
        for suite in SUITES
    ]


@pytest.mark.parametrize(("name", "image"), places(INSTALLED), indirect=["image"])
def test_what_a_page_shows_is_what_happens(name: str, image: Image) -> None:
    check(name, image)


@pytest.mark.parametrize(("name", "bare"), places(BARE), indirect=["bare"])
def test_what_a_page_shows_is_what_happens_where_nothing_is_installed_yet(name: str, bare: Image) -> None:
    check(name, bare)


def test_the_readme_leads_to_an_attributed_attempt_in_five_commands() -> None:
    first = next(block for block in docs.blocks(PAGES["README.md"]) if block.kind == "console")
    commands = first.commands()
    assert len(commands) == 5
    assert "README.md" in BARE
    shown = "\n".join(commands[-1].shown)
    assert "session 1 (root)" in shown
    assert "to 203.0.113.7:25" in shown
