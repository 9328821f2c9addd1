"""Where the CPU went: user and system time of process trees, from /proc (10 ms ticks, dead children included)."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
CORES = os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds by group, of the bench itself (driver and sink), and of the whole machine, over `elapsed_s`."""

    groups: Mapping[str, float]
    bench_s: float
    machine_s: float
    elapsed_s: float

    @property
    def total_s(self) -> float:
        return sum(self.groups.values())

    def per(self, count: int) -> dict[str, float]:
        """Microseconds of each group for one of `count`."""
        return {group: seconds / count * 1e6 for group, seconds in self.groups.items()}

    @property
    def busy(self) -> float:
        """How much of the machine worked, 0..1."""
        return self.machine_s / (self.elapsed_s * CORES)

    @property
    def strangers(self) -> float:
        """How much of the machine worked for others, 0..1."""
        return max(0.0, self.machine_s - self.total_s - self.bench_s) / (self.elapsed_s * CORES)


class Meter:
    """Runs from when it is made. `roots`: pids by group, counted with all their descendants; `bench`: pids alone."""

    def __init__(self, roots: Mapping[str, Sequence[int]], bench: Sequence[int] = ()) -> None:
        self._roots = roots
        self._bench = (os.getpid(), *bench)
        self._began = time.monotonic()
        self._before = self._read()

    def stop(self) -> Usage:
        machine, bench, groups = self._read()
        machine_before, bench_before, before = self._before
        return Usage(
            {group: seconds - before[group] for group, seconds in groups.items()},
            bench_s=bench - bench_before,
            machine_s=machine - machine_before,
            elapsed_s=time.monotonic() - self._began,
        )

    def _read(self) -> tuple[float, float, dict[str, float]]:
        times, own, children = _processes()
        groups = {}
        for group, roots in self._roots.items():
            seek, total = list(roots), 0
            while seek:
                pid = seek.pop()
                total += times.get(pid, 0)
                seek += children[pid]
            groups[group] = total * TICK_S
        return _machine_s(), sum(own.get(pid, 0) for pid in self._bench) * TICK_S, groups


def _processes() -> tuple[dict[int, int], dict[int, int], dict[int, list[int]]]:
    """By pid: ticks with those of waited-for children, ticks of its own, children."""
    times: dict[int, int] = {}
    own: dict[int, int] = {}
    children: dict[int, list[int]] = defaultdict(list)
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                text = Path(entry.path, "stat").read_text()
            except OSError:
                continue  # it ended meanwhile
            fields = text[text.rindex(")") + 2 :].split()
            times[int(entry.name)] = sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime: proc_pid_stat(5)
            own[int(entry.name)] = sum(map(int, fields[11:13]))
            children[int(fields[1])].append(int(entry.name))
    return times, own, children


def _machine_s() -> float:
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + irq + softirq) * TICK_S


def pss_mb(pid: int) -> float:
    """Proportional set size: private pages whole, shared ones by share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no Pss of {pid}")
