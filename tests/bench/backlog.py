"""Whether taking work costs more with a million waiting than with a few: claim, take, the relay's pick, record.

The functions of the service themselves, called on rows made by generate_series, in a process of their own
(`tests.bench.backlog_rows`). Compared is CPU, of that process and of its PostgreSQL backend.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from apps.console.supervisor import ROOT
from tests.acceptance.stack import with_database
from tests.bench.bench import Bench
from tests.bench.ours import PREPARED

DATABASE = "bench_backlog"


def claim(bench: Bench) -> None:
    """claim, take, relay's pick and record at 10,000, 100,000 and 1,000,000 waiting, and under a held snapshot"""
    ours = bench.ours
    with bench.aside():
        ours.sql(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)", f"CREATE DATABASE {DATABASE} TEMPLATE {PREPARED}")
        environment = {**ours.environment, "DATABASE_URL": with_database(os.environ["DATABASE_URL"], DATABASE)}
        command = [sys.executable, "-m", "tests.bench.backlog_rows", *(["--quick"] if bench.quick else [])]
        found = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        ours.sql(f"DROP DATABASE {DATABASE} WITH (FORCE)")
    times: dict[str, dict[str, float]] = json.loads(found.stdout)
    small, large, held = "100000", "1000000", "held"
    for step in ("claim", "take", "pick", "record"):
        print(f"  {step:8}" + "   ".join(f"{name}: {by_step[step]:.1f} ms CPU" for name, by_step in times.items()))
        bench.figures |= {f"{step} {name} ms": by_step[step] for name, by_step in times.items()}
    for step in ("claim", "take", "pick"):
        bench.figures[f"{step} 1M/100k"] = times[large][step] / times[small][step]
        bench.figures[f"{step} held/free"] = times[held][step] / times[large][step]
    bench.figures["record 1M/10k"] = times[large]["record"] / times["10000"]["record"]
