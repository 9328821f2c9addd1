"""The goals, and what came out: printed, kept in bench.json, and written into docs/benchmarks.md."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from apps.console.servers import postgres_binaries
from apps.console.supervisor import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- written by make bench: begin -->", "<!-- written by make bench: end -->"


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the table. `must` and `aim` are the least allowed, or with `is_ceiling` the most."""

    words: str
    figure: str
    unit: str
    must: float | None = None
    aim: float | None = None
    is_ceiling: bool = False

    def shown(self, value: float | None) -> str:
        if value is None:
            return ""
        digits = 1 if abs(value) < 100 and value != int(value) else 0
        return f"{value:,.{digits}f}{self.unit}"

    def verdict(self, value: float) -> str:
        """ "aim", "must" or "missed"; "" for a figure without a goal."""
        for word, bound in (("aim", self.aim), ("must", self.must)):
            if bound is not None and (value <= bound if self.is_ceiling else value >= bound):
                return word
        return "" if self.must is None else "missed"


def _least(words: str, figure: str, unit: str, must: float, aim: float) -> Goal:
    return Goal(words, figure, unit, must, aim)


def _most(words: str, figure: str, unit: str, must: float, aim: float) -> Goal:
    return Goal(words, figure, unit, must, aim, is_ceiling=True)


def _known(words: str, figure: str, unit: str) -> Goal:
    return Goal(words, figure, unit)


GOALS = (
    _least("bulk push, rate against naive+reuse", "bulk vs naive+reuse", "x", 12, 30),
    _least("bulk push, rate against naive", "bulk vs naive", "x", 25, 60),
    _known("bulk push, CPU against naive+reuse", "bulk cpu vs naive+reuse", "x less"),
    _known("bulk push, deliveries", "bulk ours per_s", "/s"),
    _known("naive+reuse, deliveries", "bulk naive+reuse per_s", "/s"),
    _known("naive, deliveries", "bulk naive per_s", "/s"),
    _most("bulk push, CPU for each, all processes and servers", "bulk ours cpu_us", " us", 650, 300),
    _least("bulk push, deliveries per core", "bulk ours per_core", "/s", 1500, 3000),
    _least("bulk push to a provider of 50 ms, rate against naive+reuse", "slow vs naive+reuse", "x", 40, 100),
    _known("bulk push to a provider of 50 ms, CPU against naive+reuse", "slow cpu vs naive+reuse", "x less"),
    _known("bulk push to a provider of 50 ms, deliveries", "slow ours per_s", "/s"),
    _least("one request each, accepted and delivered, rate against naive+reuse", "single vs naive+reuse", "x", 2.5, 5),
    _known("one request each, accepted and delivered, CPU against naive+reuse", "single cpu vs naive+reuse", "x less"),
    _known("one request each, accepted and delivered", "single ours per_s", "/s"),
    _least("single accept alone, against the naive view", "accept single vs naive+reuse", "x", 1.5, 2.5),
    _known("single accept alone, CPU against the naive view", "accept single cpu vs naive+reuse", "x less"),
    _least("single accept alone", "accept single ours per_s", "/s", 1000, 1800),
    _least("bulk accept alone, against create and delay for each", "accept bulk vs naive+reuse", "x", 15, 40),
    _known("bulk accept alone, CPU against create and delay", "accept bulk cpu vs naive+reuse", "x less"),
    _least("bulk accept alone, recipients", "accept bulk ours per_s", "/s", 20_000, 50_000),
    _most("accept, 30 requests a second, p99", "quiet accept p99 ms", " ms", 25, 10),
    _most("normal lane, quiet, request to provider, p50", "quiet p50 ms", " ms", 50, 20),
    _most("normal lane, quiet, request to provider, p99", "quiet p99 ms", " ms", 300, 50),
    _known("critical lane during a campaign of 100,000, request to provider, p50", "campaign p50 ms", " ms"),
    _most("critical lane during a campaign of 100,000, request to provider, p99", "campaign p99 ms", " ms", 100, 30),
    _most("claim at 1,000,000 waiting against 100,000", "claim 1M/100k", "x", 1.5, 1.1),
    _most("take at 1,000,000 waiting against 100,000", "take 1M/100k", "x", 1.5, 1.1),
    _most("relay's pick at 1,000,000 waiting against 100,000", "pick 1M/100k", "x", 1.5, 1.1),
    _most("claim after 150,000 under a held snapshot, against none", "claim held/free", "x", 2, 1.3),
    _most("take after 150,000 under a held snapshot, against none", "take held/free", "x", 2, 1.3),
    _most("relay's pick of 1,000 after 150,000 under a held snapshot, CPU", "pick held ms", " ms", 100, 30),
    _known("relay's pick after 150,000 under a held snapshot, against none", "pick held/free", "x"),
    _most("record at 1,000,000 waiting against 10,000", "record 1M/10k", "x", 2, 1.3),
    _most("memory of a sending process after 100,000 deliveries, PSS", "memory MB", " MB", 150, 80),
    _most("its growth over the last 50,000", "memory growth MB", " MB", 2, 0),
    _most("statements per 500 deliveries: ring, claim, record", "statements per 500", "", 8, 5),
    _most("new PostgreSQL sessions per 1,000 tasks", "sessions per 1000 tasks", "", 1, 0),
    _least("mail over SMTP, rate against django-post_office", "email vs post_office", "x", 2, 4),
    _least("mail over SMTP, CPU against django-post_office", "email cpu vs post_office", "x less", 2, 4),
    _known("mail over SMTP", "email ours per_s", "/s"),
    _known("SMS, accepted to provider, p95, APNs answers", "hung sms quiet p95 ms", " ms"),
    _known("SMS, accepted to provider, p95, APNs hangs", "hung sms p95 ms", " ms"),
    _most("what that adds, of the 10 % or 20 ms that it may", "hung sms added %", " %", 100, 25),
    _known("email, accepted to provider, p95, APNs answers", "hung email quiet p95 ms", " ms"),
    _known("email, accepted to provider, p95, APNs hangs", "hung email p95 ms", " ms"),
    _most("what that adds, of the 10 % or 20 ms that it may", "hung email added %", " %", 100, 25),
    _most("APNs is back after a minute: until its backlog is gone, worst", "hung backlog s", " s", 60, 30),
    _most("pushes accepted while APNs hung that were lost", "hung pushes lost", "", 0, 0),
    _most("pushes accepted while APNs hung that were not sent in the end", "hung pushes not sent", "", 0, 0),
)


def misses_goal(figure: str, value: float) -> bool:
    return any(goal.verdict(value) == "missed" for goal in GOALS if goal.figure == figure)


def entries(figures: dict[str, float], void: set[str], *, quick: bool) -> dict[str, dict[str, Any]]:
    """What a run found, as bench.json keeps it."""
    at = datetime.now(UTC).strftime("%Y-%m-%d")
    return {name: {"value": value, "at": at, "quick": quick, "void": name in void} for name, value in figures.items()}


def keep(path: Path, found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Add what was found to what earlier runs left in the file, and return all. A void figure replaces no good one."""
    kept: dict[str, dict[str, Any]] = json.loads(path.read_text())["figures"] if path.exists() else {}
    for name, entry in found.items():
        if not entry["void"] or kept.get(name, {}).get("void", True):
            kept[name] = entry
    path.write_text(json.dumps({"machine": machine(), "figures": kept}, indent=1, sort_keys=True) + "\n")
    return kept


def table(figures: dict[str, dict[str, Any]]) -> str:
    """The goals that something was measured for, as Markdown."""
    lines = ["| goal | must | aim | measured | reached | date |", "|---|---|---|---|---|---|"]
    for goal in GOALS:
        found = figures.get(goal.figure)
        if found:
            word = "void" if found["void"] else goal.verdict(found["value"])
            measured = goal.shown(found["value"]) + (" (quick)" if found["quick"] else "")
            lines.append(
                f"| {goal.words} | {goal.shown(goal.must)} | {goal.shown(goal.aim)} | {measured} | {word} "
                f"| {found['at']} |"
            )
    return "\n".join(lines)


def write_page(figures: dict[str, dict[str, Any]]) -> None:
    """Put the table between the page's two markers."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{machine()}\n\n{table(figures)}\n{END}{after}")


def machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = names[0].partition(":")[2].strip() if names else platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    postgres = subprocess.run([postgres_binaries() / "postgres", "--version"], capture_output=True, text=True).stdout
    return (
        f"{os.cpu_count()} x {name}, {memory:.0f} GB; Linux {platform.release()}, Python {platform.python_version()}, "
        f"PostgreSQL {postgres.split()[-1]}; driver, service, servers and sink all on it."
    )
