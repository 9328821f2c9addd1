"""The figures behind the README's numbers: ours against the naive design, on the same servers, in one run.

    python -m tests.bench                        everything, about half an hour
    python -m tests.bench --only bulk --quick    one part, once

The machine's other work shows in every figure: read ratios and CPU, not rates.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time

from apps.console.supervisor import state_directory
from tests.bench import report
from tests.bench.bench import Bench
from tests.bench.environment import servers_in
from tests.bench.parts import PARTS

STATE = state_directory() / "bench"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="one round, smaller loads")
    parser.add_argument("--ours", action="store_true", help="leave the naive side out")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(servers_in(STATE))
        bench = stack.enter_context(Bench(servers, STATE, quick=options.quick, ours_only=options.ours))
        for part in PARTS:
            if part in chosen:
                print(f"\n== {part}: {PARTS[part].__doc__}", flush=True)
                PARTS[part](bench)
    found = report.entries(bench.figures, bench.void, quick=options.quick)
    print("\n" + report.table(found))
    kept = report.keep(state_directory() / "bench.json", found)
    if not options.quick:
        report.write_page({name: entry for name, entry in kept.items() if not entry["quick"]})
    print(f"\n{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
