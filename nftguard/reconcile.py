"""One pass: look, compare, change at most once. The daemon, `apply` and the tests all come this way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nftguard.errors import KernelError
from nftguard.plan import Plan, diff, rebuild

if TYPE_CHECKING:
    from collections.abc import Callable

    from nftguard.kernel import Kernel
    from nftguard.model import Table


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pass found and did: `live` is the table as it was before, the empty plan means that nothing differed."""

    live: Table | None
    plan: Plan


def reconcile(kernel: Kernel, desired: Table, working: Callable[[], None] = lambda: None) -> Outcome:
    """Make the kernel's table the desired one; call `working` once it is clear that there is something to do.

    Counters that are made anew begin with the values that the desired table gives them.

    Raises KernelError when the kernel refused, and NotPermittedError; the live table is then what it was before.
    """
    live = kernel.snapshot()
    plan = diff(live, desired)
    if not plan:
        return Outcome(live, plan)
    working()
    try:
        kernel.apply(plan)
    except KernelError:
        # Somebody changed the table since the snapshot, or left something in it that cannot be changed in place
        # (a rule of theirs that refers to a chain of ours): look again, and replace the table whole.
        live = kernel.snapshot()
        plan = rebuild(live, desired)
        kernel.apply(plan)
    return Outcome(live, plan)
