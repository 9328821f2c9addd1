"""The parts by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable

from tests.bench import sends
from tests.bench.bench import Bench

PARTS: dict[str, Callable[[Bench], None]] = {
    "bulk": sends.bulk,
    "single": sends.single,
    "accept": sends.accept,
    "slow": sends.slow,
}
