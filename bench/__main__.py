"""`python -m bench`: measure everything, print one table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench import apply, attempts, clients, exceptions, install, memory, packet, repair, rivals, start
from bench.figure import Section, progress, render

FAMILIES = {
    "start": start,
    "repair": repair,
    "packet": packet,
    "exceptions": exceptions,
    "apply": apply,
    "attempts": attempts,
    "memory": memory,
}
ASKED = {"clients": clients, "install": install, "rivals": rivals}
"""Families that boot machines, or take half an hour (clients), and are measured only when they are asked for."""


def main() -> None:
    """Measure what was asked for, in the order of the table."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--only", metavar="NAME", choices=FAMILIES | ASKED, help=f"one family: {', '.join(FAMILIES | ASKED)}"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    if os.geteuid():
        parser.error("needs root, to make network namespaces")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    begun = time.monotonic()
    sections: dict[str, Section] = {}
    for name in [arguments.only] if arguments.only else FAMILIES:
        progress(f"{name}: begun after {time.monotonic() - begun:.0f} s")
        family = (FAMILIES | ASKED)[name]
        sections[name] = Section((family.__doc__ or name).splitlines()[0].rstrip("."), tuple(family.measure()))
    host = f"kernel {platform.release()}, {_nft()}, {os.cpu_count()} CPUs, python {platform.python_version()}"
    print(render(sections.values()))
    print(f"\n{host}; took {time.monotonic() - begun:.0f} s")
    if arguments.json:
        figures = [figure.document(name) for name, section in sections.items() for figure in section.figures]
        arguments.json.write_text(json.dumps({"host": host, "figures": figures}, indent=1) + "\n", encoding="utf-8")


def _nft() -> str:
    version = subprocess.run(("nft", "--version"), check=True, capture_output=True, text=True).stdout
    return " ".join(version.split()[:2]).replace("nftables v", "nft ")


if __name__ == "__main__":
    main()
