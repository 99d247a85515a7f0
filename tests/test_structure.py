"""What the layout promises: a pure core, one door to the kernel, an early way in that imports next to nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nftguard

SOURCES = Path(nftguard.__file__).parent
IO = {
    "asyncio",
    "ctypes",
    "fcntl",
    "os",
    "pathlib",
    "select",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
}


def imports(path: Path) -> set[str]:
    """The modules that a file imports when it runs: not those for type checkers alone."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            found.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def summary(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


PURE = {
    ".".join(path.relative_to(SOURCES).with_suffix("").parts): path
    for path in sorted(SOURCES.rglob("*.py"))
    if summary(path).endswith(" Pure.")
}
"""The modules that say so, by their names within the package."""


def test_what_decides_is_pure() -> None:
    assert PURE.keys() >= {"allow", "model", "nftjson", "nftscript", "plan", "policy", "ports", "status", "trace"}


@pytest.mark.parametrize("name", PURE)
def test_the_core_does_no_input_or_output(name: str) -> None:
    found = imports(PURE[name])
    assert not {module.split(".")[0] for module in found} & IO
    allowed = {f"nftguard.{pure}" for pure in PURE}
    ours = {
        module
        for module in found
        if module.startswith("nftguard.") and (SOURCES / f"{module[9:].replace('.', '/')}.py").exists()
    }
    assert ours <= allowed, "the core leans on the core alone"


def users(module: str) -> set[str]:
    return {path.stem for path in SOURCES.rglob("*.py") if module in imports(path)}


def test_pydantic_goes_no_further_than_the_configuration() -> None:
    assert users("pydantic") == {"config"}


def test_only_what_serves_metrics_needs_prometheus_client() -> None:
    assert {
        path.parent.name for path in SOURCES.rglob("*.py") if any("prometheus_client" in name for name in imports(path))
    } == {"metrics"}


def test_there_is_one_door_to_libnftables() -> None:
    assert users("nftables") == {"bootscript", "kernel"}


def test_there_is_one_logger() -> None:
    assert users("structlog") == {"journal"}


def test_nothing_but_the_end_of_the_service_starts_another_program() -> None:
    assert users("subprocess") == {"unitjob"}, "systemctl, when the service is stopped"


def test_modules_stay_small_enough_to_read() -> None:
    sizes = {path.name: len(path.read_text().splitlines()) for path in SOURCES.rglob("*.py")}
    assert {name: size for name, size in sizes.items() if size > 300} == {}


def test_the_early_way_in_imports_next_to_nothing() -> None:
    code = "import sys; before = set(sys.modules); import nftguard.__main__; print(*sorted(set(sys.modules) - before))"
    out = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(out) <= {"__future__", "_blake2", "fcntl", "nftguard", "nftguard.__main__", "nftguard.bootscript"}


def test_every_module_says_what_it_is() -> None:
    assert all(map(summary, SOURCES.rglob("*.py")))


def test_every_module_has_its_room_in_the_documentation() -> None:
    page = (SOURCES.parent / "docs/architecture.md").read_text(encoding="utf-8")
    rooms = set(re.findall(r"`(\w+)[`./]", page.partition("\n## The table")[0]))
    assert {path.stem for path in SOURCES.rglob("*.py")} - {"__init__"} <= rooms
