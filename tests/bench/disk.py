"""How long the machine's disk stands still of itself: what waits for a commit meanwhile waits with it."""

from __future__ import annotations

import os
import time
from pathlib import Path

STALL_S = 0.03  # a commit on a disk at rest takes a fraction of a millisecond
MOST_STALLED = 0.003  # of the time; at a hundredth, every p99 is the disk's and not ours
_PAGE = b"\0" * 8192
_PAGES = 2048


def stalled(directory: Path, seconds: float = 6.0) -> float:
    """The share of the time, 0..1, in which a write of a page at rest takes longer than `STALL_S` to reach the disk."""
    path = directory / "disk.probe"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        os.write(fd, _PAGE * _PAGES)
        os.fsync(fd)
        lost, began, number = 0.0, time.monotonic(), 0
        while time.monotonic() - began < seconds:
            os.pwrite(fd, _PAGE, number % _PAGES * len(_PAGE))
            at = time.monotonic()
            os.fdatasync(fd)
            took = time.monotonic() - at
            lost += took if took > STALL_S else 0.0
            number += 1
            time.sleep(0.002)
        return lost / (time.monotonic() - began)
    finally:
        os.close(fd)
        path.unlink()
