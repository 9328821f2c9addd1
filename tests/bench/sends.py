"""Accepting and sending at full speed: in bulk, one by one, and against a provider that takes 50 ms."""

from __future__ import annotations

from tests.bench.bench import LEAST_NAIVE_REUSE, Bench
from tests.bench.ours import BenchStack, Run
from tests.bench.theirs import Naive

Side = BenchStack | Naive


def bulk(bench: Bench) -> None:
    """push, batches of 10 items x 100 recipients, no provider latency"""
    ours, theirs = (10_000, 1000) if bench.quick else (40_000, 2000)

    def load(side: Side) -> Run:
        return side.bulk(ours if isinstance(side, BenchStack) else theirs)

    runs = bench.sides(load, naive=(False, True))
    bench.compare("bulk", runs, least=LEAST_NAIVE_REUSE)
    bench.figures["bulk ours per_core"] = 1e6 / bench.figures["bulk ours cpu_us"]


def single(bench: Bench) -> None:
    """push, one request each over 16 connections, no provider latency"""
    ours, theirs = (3000, 1000) if bench.quick else (8000, 2000)
    runs = bench.sides(lambda side: side.single(ours if isinstance(side, BenchStack) else theirs))
    bench.compare("single", runs, least=LEAST_NAIVE_REUSE)


def accept(bench: Bench) -> None:
    """accepting alone, while all who would work on it stand still: one by one over 16 connections, then in bulk"""
    ours, theirs = (1500, 500) if bench.quick else (4000, 1500)
    singles = bench.sides(lambda side: side.accept_single(ours if isinstance(side, BenchStack) else theirs))
    bench.compare("accept single", singles)
    ours, theirs = (20_000, 1000) if bench.quick else (50_000, 2000)
    batches = bench.sides(lambda side: side.accept_bulk(ours if isinstance(side, BenchStack) else theirs))
    bench.compare("accept bulk", batches)


def slow(bench: Bench) -> None:
    """push in bulk to a provider that answers after 50 ms; 2 worker processes on both sides"""
    ours, theirs = (10_000, 200) if bench.quick else (40_000, 600)

    def load(side: Side) -> Run:
        return side.bulk(ours if isinstance(side, BenchStack) else theirs)

    runs = bench.sides(load, latency_ms=50.0)
    bench.compare("slow", runs)
