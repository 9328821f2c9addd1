"""The parts by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable

from tests.bench import backlog, mail, sends
from tests.bench.bench import Bench
from tests.bench.hung import hung
from tests.bench.latency import latency
from tests.bench.memory import memory
from tests.bench.statements import statements

PARTS: dict[str, Callable[[Bench], None]] = {
    "bulk": sends.bulk,
    "single": sends.single,
    "accept": sends.accept,
    "slow": sends.slow,
    "statements": statements,
    "latency": latency,
    "memory": memory,
    "claim": backlog.claim,
    "email": mail.mail,
    "hung": hung,
}
