"""What the parts share: the sinks, the service once started, and how a run is shown."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from apps.console.servers import Servers
from tests.bench.driver import percentile
from tests.bench.ours import BenchStack, Run
from tests.bench.sink import Sink
from tests.bench.theirs import Naive

LEAST_NAIVE_REUSE = 150.0  # deliveries/s: slower than that, the machine was busy and the run says nothing


class Bench:
    def __init__(self, servers: Servers, state: Path, *, quick: bool, ours_only: bool) -> None:
        self.servers = servers
        self.state = state
        self.quick = quick
        self.ours_only = ours_only
        self.rounds = 1 if quick else 3
        self.figures: dict[str, float] = {}
        self._open = contextlib.ExitStack()
        self._ours: BenchStack | None = None

    def __enter__(self) -> Self:
        self.sink = self._open.enter_context(Sink())
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    @property
    def ours(self) -> BenchStack:
        """Started with the first part that needs it, and warm."""
        if self._ours is None:
            self._ours = BenchStack(self.servers, self.state)
            self._open.callback(self._ours.stop_all)
            self._ours.start_for(self.sink.url, 25)
            self._ours.bulk(2000)
            self._ours.single(200)
        return self._ours

    @contextlib.contextmanager
    def naive(self, *, reuse: bool) -> Iterator[Naive]:
        """The other side, warm, while ours stands still."""
        frozen = self._ours.frozen() if self._ours else contextlib.nullcontext()
        with frozen, Naive(self.servers, self.state, self.sink.url, reuse=reuse) as naive:
            naive.bulk(100)
            yield naive

    def sides(
        self, load: Callable[[BenchStack | Naive], Run], *, latency_ms: float = 0.0, naive: tuple[bool, ...] = (True,)
    ) -> dict[str, list[Run]]:
        """The load on each side, `rounds` times in turn. `naive`: which of it, by `reuse`."""
        runs: dict[str, list[Run]] = {}
        self.ours  # noqa: B018 - started before the first round, not inside it
        for _ in range(self.rounds):
            for reuse in () if self.ours_only else naive:
                self.sink.reset(latency_ms)
                with self.naive(reuse=reuse) as side:
                    runs.setdefault("naive+reuse" if reuse else "naive", []).append(load(side))
            self.sink.reset(latency_ms)
            runs.setdefault("ours", []).append(load(self.ours))
        for name, found in runs.items():
            for run in found:
                show(name, run)
        return runs


def show(name: str, run: Run) -> None:
    groups = sorted(run.usage.per(run.deliveries).items(), key=lambda item: -item[1])
    waits = run.answers.waits_s
    print(
        f"  {name:12} {run.deliveries:>7,} in {run.elapsed_s:6.2f} s = {run.per_s:8,.0f}/s   CPU {run.cpu_us:7,.0f} us "
        f"({1e6 / run.cpu_us:6,.0f}/s per core)   accepted in {run.accepted_s:.2f} s, "
        f"p50 {percentile(waits, 0.5) * 1e3:.0f} p99 {percentile(waits, 0.99) * 1e3:.0f} ms"
    )
    print("      us each: " + "   ".join(f"{group} {us:,.0f}" for group, us in groups if us >= 0.5))
    print(
        f"      new sessions {run.sessions}; machine {run.usage.machine_s / run.usage.elapsed_s / 2 * 100:.0f} % busy, "
        f"of which counted here {run.usage.total_s / run.usage.machine_s * 100:.0f} %",
        flush=True,
    )


def median(runs: list[Run], of: Callable[[Run], float]) -> float:
    return statistics.median(map(of, runs))


def bulk(bench: Bench) -> None:
    """push, batches of 10 items x 100 recipients, no provider latency"""
    ours, theirs = (10_000, 1000) if bench.quick else (40_000, 2000)
    runs = bench.sides(lambda side: side.bulk(ours if isinstance(side, BenchStack) else theirs), naive=(False, True))
    compare(bench, "bulk", runs)


def single(bench: Bench) -> None:
    """push, one request each over 16 connections, no provider latency"""
    ours, theirs = (3000, 1000) if bench.quick else (8000, 2000)
    runs = bench.sides(lambda side: side.single(ours if isinstance(side, BenchStack) else theirs))
    compare(bench, "single", runs)


def compare(bench: Bench, name: str, runs: dict[str, list[Run]]) -> None:
    per_s = {side: median(found, lambda run: run.per_s) for side, found in runs.items()}
    bench.figures |= {f"{name} {side} per_s": rate for side, rate in per_s.items()}
    bench.figures[f"{name} cpu_us"] = median(runs["ours"], lambda run: run.cpu_us)
    for side in ("naive", "naive+reuse"):
        if side in per_s:
            bench.figures[f"{name} vs {side}"] = per_s["ours"] / per_s[side]
            print(f"  ours / {side}: {per_s['ours'] / per_s[side]:.1f}x")
    if per_s.get("naive+reuse", LEAST_NAIVE_REUSE) < LEAST_NAIVE_REUSE:
        print(f"  VOID: naive+reuse reached {per_s['naive+reuse']:.0f}/s, less than {LEAST_NAIVE_REUSE:.0f}/s")


PARTS: dict[str, Callable[[Bench], None]] = {"bulk": bulk, "single": single}
