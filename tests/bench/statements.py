"""How many statements a delivery costs, by process."""

from __future__ import annotations

import re
from collections import Counter

from tests.bench.bench import Bench

_LINE = re.compile(r"^@notifier-([\w-]+)@.*?LOG:  (?:statement|execute [^:]*):\s+(\w+)", re.MULTILINE)
_RELOAD = "SELECT pg_reload_conf()"
_FRAME = {"BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE"}


def statements(bench: Bench) -> None:
    """statements per 500 deliveries sent in bulk, as PostgreSQL logs them (log_statement = all)"""
    deliveries = 10_000
    ours = bench.ours
    assert bench.servers.postgres
    log = bench.servers.postgres.log
    bench.sink.reset()
    ours.sql("ALTER SYSTEM SET log_statement = 'all'", "ALTER SYSTEM SET log_line_prefix = '@%a@ '", _RELOAD)
    try:
        ours.wait_for(lambda: ours.query("SHOW log_statement")[0][0] == "all", "the setting")
        begins = log.stat().st_size
        ours.bulk(deliveries)
        with log.open("rb") as file:
            file.seek(begins)
            found = Counter(_LINE.findall(file.read().decode(errors="replace")))
    finally:
        ours.sql("ALTER SYSTEM RESET ALL", _RELOAD)
    for process in ("web", "core", "relay", "push"):
        words = {word: n for (name, word), n in found.items() if name == process and word not in _FRAME}
        frames = sum(n for (name, word), n in found.items() if name == process and word in _FRAME)
        each = sum(words.values()) / deliveries * 500
        bench.figures[f"statements {process}"] = each
        print(f"  {process:6} {each:6.1f} per 500, and {frames / deliveries * 500:.1f} BEGIN and COMMIT   {words}")
    total = bench.figures["statements push"] + bench.figures["statements relay"]
    bench.figures["statements per 500"] = total
    print(f"  ring, claim and record: {total:.1f} per 500 deliveries")
