"""The libraries that a package carries, from PyPI: this machine's pip fetches them, which knows its way there."""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from builder import cache
from builder.system import BuildError

_DAYS = 20
_TIMEOUT = 300.0


def folder(requirements: bytes, python: str) -> Path:
    """Give the folder with every wheel of debian/requirements.txt for a version of Python, as 3.11.

    Each is one that the file names by its hash. Raises BuildError and TimeoutError.
    """
    mark = f"{python}-{cache.key([requirements])}"
    return cache.kept("wheels", mark, _DAYS, lambda target: _fetch(requirements, python, target), timeout=_TIMEOUT)


def _fetch(requirements: bytes, python: str, target: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    command += [f"--platform={tag}_{platform.machine()}" for tag in ("manylinux2014", "manylinux_2_17")]
    with tempfile.NamedTemporaryFile(suffix=".txt") as file:
        Path(file.name).write_bytes(requirements)
        command += ["--dest", str(target), "--requirement", file.name]
        pip = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    if pip.returncode:
        raise BuildError(f"pip could not fetch what debian/requirements.txt lists:\n{pip.stderr[-4000:]}")
