"""What the parts share: the sink, the service once started, both sides in turn, and how a run is shown."""

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
MOST_STRANGE = 0.25  # of the machine, for others: more, and rates and times say nothing
SIDES = {False: "naive", True: "naive+reuse"}


class Bench:
    """`figures`: what was found, by name; `void`: those of them that a busy machine made worthless."""

    def __init__(self, servers: Servers, state: Path, *, quick: bool, ours_only: bool) -> None:
        self.servers = servers
        self.state = state
        self.quick = quick
        self.ours_only = ours_only
        self.rounds = 1 if quick else 3
        self.figures: dict[str, float] = {}
        self.void: set[str] = set()
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
            self._ours = BenchStack(self.servers, self.state, (self.sink.process.pid,))
            self._open.callback(self._ours.stop_all)
            self._ours.start_for(self.sink.url, self.sink.smtp_port)
            self._ours.bulk(2000)
            self._ours.single(200)
        return self._ours

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Ours stands still."""
        with self._ours.frozen() if self._ours else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def naive(self, *, reuse: bool) -> Iterator[Naive]:
        """The other side, warm, while ours stands still."""
        with self.aside(), Naive(self.servers, self.state, self.sink, reuse=reuse) as naive:
            naive.bulk(100)
            yield naive

    def sides(
        self,
        load: Callable[[BenchStack | Naive], Run],
        *,
        latency_ms: float = 0.0,
        naive: tuple[bool, ...] = (True,),
        rounds: int = 0,
    ) -> dict[str, list[Run]]:
        """The load on each side, `rounds` times in turn. `naive`: which of it, by `reuse`."""
        runs: dict[str, list[Run]] = {}
        self.ours  # noqa: B018 - started before the first round, not inside it
        for _ in range(rounds or self.rounds):
            for reuse in () if self.ours_only else naive:
                self.sink.reset(latency_ms)
                with self.naive(reuse=reuse) as side:
                    runs.setdefault(SIDES[reuse], []).append(load(side))
                show(SIDES[reuse], runs[SIDES[reuse]][-1])
            self.sink.reset(latency_ms)
            runs.setdefault("ours", []).append(load(self.ours))
            show("ours", runs["ours"][-1])
        self.sink.reset()
        return runs

    def compare(self, name: str, runs: dict[str, list[Run]], *, least: float | None = None) -> None:
        """Medians of the rounds and their ratios, as `<name> ...` figures.

        `least`: the rate that naive+reuse must reach, else the ratios of rates are void; those of CPU stand.
        """
        per_s = {side: median(found, lambda run: run.per_s) for side, found in runs.items()}
        cpu_us = {side: median(found, lambda run: run.cpu_us) for side, found in runs.items()}
        self.figures |= {f"{name} {side} per_s": rate for side, rate in per_s.items()}
        self.figures |= {f"{name} {side} cpu_us": used for side, used in cpu_us.items()}
        for side in (side for side in per_s if side != "ours"):
            ratio, cpu_ratio = per_s["ours"] / per_s[side], cpu_us[side] / cpu_us["ours"]
            self.figures |= {f"{name} vs {side}": ratio, f"{name} cpu vs {side}": cpu_ratio}
            print(f"  ours against {side}: {ratio:.1f}x the rate, {cpu_ratio:.1f}x less CPU")
        rates = {f"{name} vs {side}" for side in per_s} | {f"{name} {side} per_s" for side in per_s}
        if least is not None and per_s.get("naive+reuse", least) < least:
            self.discard(rates, f"naive+reuse reached {per_s['naive+reuse']:.0f}/s, less than {least:.0f}/s")
        else:
            self.judge(rates, max(median(found, lambda run: run.usage.strangers) for found in runs.values()))

    def judge(self, figures: set[str], strangers: float) -> None:
        """Void figures of time that were taken while others had too much of the machine."""
        if strangers > MOST_STRANGE:
            self.discard(figures, f"others had {strangers * 100:.0f} % of the machine")

    def discard(self, figures: set[str], why: str) -> None:
        self.void |= figures
        print(f"  VOID, all but CPU: {why}")


def median(runs: list[Run], of: Callable[[Run], float]) -> float:
    return statistics.median(map(of, runs))


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
        f"      tasks {run.tasks}, new sessions {run.sessions}; machine {run.usage.busy * 100:.0f} % busy, "
        f"{run.usage.strangers * 100:.0f} % for others",
        flush=True,
    )
