"""Waiting, never without a bound."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def wait_until(look: Callable[[], T | None], what: str, *, timeout: float = 10.0, pause: float = 0.02) -> T:
    """Look until there is something (anything true) and return it. Raises TimeoutError, which names `what`."""
    end = time.monotonic() + timeout
    while not (found := look()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {timeout:g} s in vain for {what}")
        time.sleep(pause)
    return found
