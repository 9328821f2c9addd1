"""The measuring process of `tests.bench.backlog`: prints milliseconds of CPU by backlog and step as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup()

import psycopg2  # noqa: E402
from django.db import connection  # noqa: E402

from apps.notifications import claims, records  # noqa: E402
from apps.notifications.relay import Relay  # noqa: E402
from notifier.ledger import Claimed, Result, Verdict  # noqa: E402
from notifier.lifecycle import State  # noqa: E402
from notifier.outcome import Kind, Outcome  # noqa: E402

QUEUE = "push.bulk"
CHANNEL, LANE = QUEUE.split(".")
TAKEN = 500
LEASE_S = 3600.0  # nothing is to come back meanwhile

# A hundred deliveries to a notification, all of it within the last seconds, ids as the service makes them: the time
# in front, one millisecond for each notification.
_ROWS = """
WITH n AS (
  SELECT k, lpad(to_hex(%(base_ms)s + k), 12, '0') AS ms FROM generate_series(1, %(notifications)s) k
), made AS (
  SELECT k, (ms || '70008000' || lpad(to_hex(k), 12, '0'))::uuid AS id, ms FROM n
), content AS (
  INSERT INTO notifications_content (id, recipients, data, options, inline)
  SELECT id, %(recipients)s::jsonb, %(data)s::jsonb, '{}', NULL FROM made
), accepted AS (
  INSERT INTO notifications_notification (id, client_id, mode, event_id, reference, template_version_id, category_id,
    lane, channels, recipients, due_at, expires_at, metadata, request_id, status, created_at)
  SELECT id, %(client)s, 'live', '', '', %(version)s, %(category)s, 'bulk', '["push"]', 100, now(),
         now() + interval '3 days', '{}', '', 'in_progress', now() FROM made
), people AS (
  SELECT row_number() OVER (ORDER BY id) - 1 AS no, id, user_id, token_hash FROM people_device
), deliveries AS (
  INSERT INTO notifications_delivery (id, notification_id, client_id, mode, category_id, user_id, recipient_no, channel,
    platform, device_id, address_hash, locale, lane, state, reason, detail, stopped_by, claim_no, expires_at)
  SELECT (m.ms || '70008' || lpad(to_hex(i * 40503 %% 65536), 4, '0') || lpad(to_hex(i), 11, '0'))::uuid, m.id,
         %(client)s, 'live', %(category)s, p.user_id, i, 'push', 'android', p.id, p.token_hash, 'en', 'bulk', 'queued',
         '', '', '', 0, now() + interval '3 days'
    FROM made m CROSS JOIN generate_series(0, 99) i JOIN people p ON p.no = (m.k * 100 + i) %% 10000
  RETURNING id
)
INSERT INTO notifications_pending (id, channel, lane, client_id, wake_at, due_at, waiting, claim_no, tries, crashes)
SELECT id, 'push', 'bulk', %(client)s, now(), now(), '', 0, 0, 0 FROM deliveries
"""


def fill(notifications: int, base_ms: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT id FROM clients_client LIMIT 1")
        [client] = cursor.fetchone()
        cursor.execute(
            "SELECT v.id, c.id FROM templates_templateversion v JOIN templates_template t ON t.id = v.template_id "
            "JOIN people_category c ON c.key = 'news' WHERE t.key = 'bench-bulk'"
        )
        version, category = cursor.fetchone()
        values = {
            "base_ms": base_ms,
            "notifications": notifications,
            "recipients": json.dumps([{"user_id": f"bench-{n}", "data": {"name": f"Person {n}"}} for n in range(100)]),
            "data": json.dumps({"order": {"id": "A-1001"}}),
            "client": client,
            "version": version,
            "category": category,
        }
        cursor.execute(_ROWS, values)
        cursor.execute("VACUUM ANALYZE")


class Clock:
    """Milliseconds of CPU of each step, ours and PostgreSQL's together, as often as it was done.

    Not of wall clock: what else the machine does would be most of it.
    """

    def __init__(self) -> None:
        self._times: dict[str, list[float]] = defaultdict(list)
        connection.ensure_connection()
        self._backend = Path(f"/proc/{connection.connection.info.backend_pid}/schedstat")

    def time(self, step: str, work: Callable[[], Any]) -> Any:
        before = self._now_ms()
        found = work()
        self._times[step].append(self._now_ms() - before)
        return found

    def medians(self, last: int | None = None) -> dict[str, float]:
        return {step: statistics.median(times[-(last or len(times)) :]) for step, times in self._times.items()}

    def _now_ms(self) -> float:
        backend_ns = int(self._backend.read_text().split()[0])  # time spent on a CPU (proc_pid_schedstat(5))
        return time.process_time() * 1e3 + backend_ns / 1e6


def cycle(clock: Clock, relay: Relay) -> int:
    """One round: the relay picks and rings, half of that is claimed by id, as much topped up, and all recorded."""
    picked, _ = clock.time("pick", lambda: relay._pick(QUEUE))
    ids = [row.id for row in picked][:TAKEN]
    taken = clock.time("claim", lambda: claims.claim(ids, lease_s=LEASE_S, alone=False))
    more = clock.time("take", lambda: claims.take([], CHANNEL, [LANE], TAKEN, lease_s=LEASE_S)[0])
    assert len(taken) == len(more) == TAKEN
    results = [sent(claimed) for claimed in (*taken, *more)]
    for start in range(0, len(results), records.BATCH):
        counted = clock.time("record", lambda start=start: records.write(results[start : start + records.BATCH]))
        assert len(counted) == records.BATCH
    return len(results)


def sent(claimed: Claimed) -> Result:
    now = time.time()
    outcome = Outcome(Kind.ACCEPTED, provider_ref=f"projects/bench/messages/{claimed.delivery_id}", http_status=200)
    return Result(claimed, Verdict(State.SENT), outcome, None, now, now)


@contextlib.contextmanager
def held_snapshot() -> Iterator[None]:
    """A transaction that has looked and does not end: a report, or pg_dump."""
    url = os.environ["DATABASE_URL"]
    with contextlib.closing(psycopg2.connect(url)) as holder:
        holder.set_session(isolation_level="REPEATABLE READ")
        with holder.cursor() as cursor:
            cursor.execute("SET idle_in_transaction_session_timeout = 0")
            cursor.execute("SELECT count(*) FROM people_category")
            yield


def main(*, quick: bool) -> None:
    relay = Relay()
    found: dict[str, dict[str, float]] = {}
    rounds = 5 if quick else 15
    base_ms = int(time.time() * 1000) - 60_000
    there = 0
    for waiting in (10_000, 100_000, 200_000 if quick else 1_000_000):
        missing = waiting + rounds * 2 * TAKEN - there
        fill(missing // 100, base_ms)
        base_ms += missing // 100 + 1
        clock = Clock()
        cycle(Clock(), relay)  # the first one reads catalogues and templates
        done = sum(cycle(clock, relay) for _ in range(rounds))
        there += missing // 100 * 100 - done - 2 * TAKEN
        found["1000000" if waiting > 100_000 else str(waiting)] = clock.medians()
    with held_snapshot():
        clock, moved = Clock(), 0
        while moved < (20_000 if quick else 150_000):
            moved += cycle(clock, relay)
        found["held"] = clock.medians(last=10)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
