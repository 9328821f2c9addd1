"""How many statements and database sessions a delivery costs, which statements, and how long each takes."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.bench import Bench
from tests.bench.ours import Run

_ENTRY = re.compile(
    r"^@notifier-(?P<process>[\w-]+)@LOG:  duration: (?P<ms>[\d.]+) ms  "
    r"(?:statement|execute [^:]*):\s+(?P<text>.*?)(?=^@)",
    re.MULTILINE | re.DOTALL,
)
_SESSION = re.compile(r"LOG:  connection authorized: .*application_name=notifier-([\w-]+)")
_LOGGING = {"log_min_duration_statement": "0", "log_connections": "on", "log_line_prefix": "@%a@"}
_FRAME = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")
_RELOAD = "SELECT pg_reload_conf()"
_MOST_SHOWN = 8


@dataclass(slots=True)
class Spent:
    count: int = 0
    ms: float = 0.0


@dataclass(slots=True)
class Logged:
    """What PostgreSQL logged during a run: statements by process and beginning, new sessions by process."""

    run: Run
    statements: dict[tuple[str, str], Spent]
    sessions: Counter[str]


def statements(bench: Bench) -> None:
    """statements per 500 deliveries in bulk, and those and the new sessions of one request each, as PostgreSQL logs"""
    bench.sink.reset()
    deliveries, count = 10_000, 500 if bench.quick else 2000
    found = logged(bench, lambda: bench.ours.bulk(deliveries)).statements
    for process in ("web", "core", "relay", "push"):
        each = sum(spent.count for (name, text), spent in found.items() if name == process and not _is_frame(text))
        bench.figures[f"statements {process}"] = each / deliveries * 500
        print(f"  bulk, {process}: {each / deliveries * 500:.1f} per 500")
    total = bench.figures["statements push"] + bench.figures["statements relay"]
    bench.figures["statements per 500"] = total
    print(f"  bulk, ring, claim and record: {total:.1f} per 500 deliveries; milliseconds for 500:")
    show_dearest(found, deliveries / 500)
    single = logged(bench, lambda: bench.ours.single(count))
    print("  one request each, milliseconds for one:")
    show_dearest(single.statements, count)
    # A web thread renews its connection when that is ten minutes old, whatever it does: no task's doing.
    sessions = sum(n for process, n in single.sessions.items() if process != "web")
    bench.figures["sessions per 1000 tasks"] = sessions / single.run.tasks * 1000
    print(f"  one request each: {single.run.tasks} tasks, new sessions {dict(single.sessions) or 'none'}")


def logged(bench: Bench, load: Callable[[], Run]) -> Logged:
    assert bench.servers.postgres
    ours, log = bench.ours, bench.servers.postgres.log
    ours.sql(*(f"ALTER SYSTEM SET {name} = '{value}'" for name, value in _LOGGING.items()), _RELOAD)
    try:
        ours.wait_for(lambda: ours.query("SHOW log_min_duration_statement")[0][0] == "0", "the setting")
        begins = log.stat().st_size
        run = load()
        with log.open("rb") as file:
            file.seek(begins)
            text = file.read().decode(errors="replace")
    finally:
        ours.sql("ALTER SYSTEM RESET ALL", _RELOAD)
    found: dict[tuple[str, str], Spent] = defaultdict(Spent)
    for entry in _ENTRY.finditer(text):
        spent = found[entry["process"], _head(entry["text"])]
        spent.count += 1
        spent.ms += float(entry["ms"])
    return Logged(run, found, Counter(_SESSION.findall(text)))


def show_dearest(found: dict[tuple[str, str], Spent], count: float) -> None:
    by_time = sorted(found.items(), key=lambda item: -item[1].ms)
    for (process, text), spent in by_time[:_MOST_SHOWN]:
        print(f"    {spent.ms / count:7.2f} ms  {spent.count / count:6.2f} x  {process:14} {text}")
    print(f"    {sum(spent.ms for spent in found.values()) / count:7.2f} ms in all")


def _head(text: str) -> str:
    """The function that is called, or the first words and the tables: enough to know a statement by."""
    if function := re.search(r"SELECT (notifications_\w+)\(", text):
        return function[1]
    tables = dict.fromkeys(re.findall(r"(?:FROM|JOIN|INTO|UPDATE) (?:ONLY )?\"?([a-z]+_[a-z_]+)", text))
    return f"{text.split()[0]} {' '.join(tables) or ' '.join(text.split()[1:4])}"[:110]


def _is_frame(text: str) -> bool:
    return text.startswith(_FRAME)
