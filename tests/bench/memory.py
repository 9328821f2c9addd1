"""What a worker process holds, and whether it grows."""

from __future__ import annotations

from tests.bench.bench import Bench
from tests.bench.cpu import pss_mb


def memory(bench: Bench) -> None:
    """PSS of each process after 100,000 deliveries, and what a sending one grew over the last half"""
    half = 5_000 if bench.quick else 50_000
    ours = bench.ours
    ours.bulk(half)
    children = ours.pids("push")[1:]
    before = {pid: pss_mb(pid) for pid in children}
    ours.bulk(half)
    after = {pid: pss_mb(pid) for pid in children}
    for name in ("web", "relay", "core", "push", "push-critical", "email"):
        sizes = [pss_mb(pid) for pid in ours.pids(name)]
        print(f"  {name:14} " + "  ".join(f"{size:.0f}" for size in sizes) + " MB")
        bench.figures[f"memory {name} MB"] = max(sizes)
    grown = max(after[pid] - before[pid] for pid in children)
    bench.figures |= {"memory MB": max(after.values()), "memory growth MB": grown}
    print(f"  push children: {max(after.values()):.0f} MB at most, {grown:+.1f} MB over the last {half:,} deliveries")
