"""The files of a configuration: which there are, and what stands in one of them, as TOML has it."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILE = 1 << 20  # bytes; a configuration of 65,535 listed ports is under half of it


def files(path: Path) -> list[Path]:
    """List the file and its drop-ins (`/etc/nftguard.toml`: `/etc/nftguard.d/*.toml`) in the order they are read.

    Raises OSError when the folder of drop-ins is there, but cannot be listed.
    """
    folder = path.parent / f"{path.stem}.d"
    try:
        return [path, *sorted(file for file in folder.iterdir() if file.suffix == ".toml" and file.name[0] != ".")]
    except (FileNotFoundError, NotADirectoryError):
        return [path]


def read(file: Path) -> dict[str, Any]:
    """Read a file. Raises OSError, and ValueError, with what is wrong, where it is no TOML."""
    # A FIFO would be waited for.
    with open(file, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise ValueError("is not a regular file")
        data = stream.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ValueError("is larger than 1 MiB; that is no configuration of nftguard")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"is not valid TOML: {_twice(str(error))}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _twice(text: str) -> str:
    """Say more plainly of a key that stands twice what tomllib says of it."""
    text = re.sub(r"^Cannot mutate immutable namespace \((.*?),?\)", r"the key \1 stands twice", text)
    return text.replace("Cannot overwrite a value", "a key stands twice")
