"""The way into a virtual machine: runs what it is told over a virtio port. Goes into the image as it is, all by itself.

A question is a line of JSON with an id, an argv, a stdin and a timeout, an answer one with the same id. One at a time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

_GONE = 0.02  # seconds between two looks for somebody at the other end


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Run the command to its end, or to the end of its time."""
    try:
        done = subprocess.run(
            question["argv"],
            input=question["stdin"],
            timeout=question["timeout"],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"id": question["id"], "timeout": True}
    except OSError as error:
        return {"id": question["id"], "code": 127, "stdout": "", "stderr": f"{error}\n"}
    return {"id": question["id"], "code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


def serve(path: str) -> None:
    """Answer question after question."""
    port = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    waiting = b""
    while True:
        data = os.read(port, 65536)
        if not data:  # nobody is at the other end, and half a question is none
            waiting = b""
            time.sleep(_GONE)
            continue
        *lines, waiting = (waiting + data).split(b"\n")
        for line in lines:
            told = json.dumps(answer(json.loads(line))).encode() + b"\n"
            while told:
                told = told[os.write(port, told) :]


if __name__ == "__main__":
    serve(sys.argv[1])
