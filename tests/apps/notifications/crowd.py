"""A database that was empty a moment ago and is full now, without anybody having told the planner."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from django.core.management import call_command
from django.db import connection

from apps.clients.models import Client
from apps.notifications import partitions
from apps.providers.models import ProviderAccount
from notifier.ids import time_of
from tests.apps.notifications.world import run

WEEKS = 40  # partitions of each large table
NOTIFICATIONS = 4_800  # three of eight have ten deliveries each, the others are not laid out yet
PEOPLE = 18_000  # as many as deliveries
CLIENTS = 20


@contextlib.contextmanager
def database_of_its_own(name: str, *, like: str = "template1") -> Iterator[None]:
    """What `connection` leads to meanwhile, and then nothing does any more."""
    usual = connection.settings_dict["NAME"]
    connection.close()
    _outside(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", f"CREATE DATABASE {name} TEMPLATE {like}")
    connection.settings_dict["NAME"] = name
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict["NAME"] = usual
        _outside(f"DROP DATABASE {name} WITH (FORCE)")


def _outside(*statements: str) -> None:
    with connection._nodb_cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def migrate() -> None:
    """As a release is migrated, with `WEEKS` partitions, and left alone by the autovacuum."""
    call_command("migrate", verbosity=0)
    _attach_earlier_weeks()
    _leave_alone()
    connection.close()


def _attach_earlier_weeks() -> None:
    week = timedelta(days=7)
    for table in partitions.PARTITIONED:
        found = partitions.bounds_of(table)
        first = time_of(found[0][1])
        for back in range(1, WEEKS - len(found) + 1):
            partitions._attach(table, first - back * week, first - (back - 1) * week)


def _leave_alone() -> None:
    """Nothing is to throw the plans away: the autovacuum analyzes what grows, and with that they are made anew."""
    for (table,) in run(
        "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = %s::regnamespace", "public"
    ):
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")


# --- what fills it --------------------------------------------------------------------------------------------

# Of each person one device, one email address and one preference.
_PEOPLE = """
WITH u AS (
  INSERT INTO people_user (external_id, locale, time_zone, country, attributes, is_opted_out, created_at, updated_at)
  SELECT 'person-' || n, 'en', '', '', '{}', false, now(), now() FROM generate_series(0, %(people)s - 1) n
  RETURNING id, substr(external_id, 8) AS n
), a AS (
  INSERT INTO people_address (id, user_id, channel, value, value_hash, is_primary, is_verified, is_sandbox, status,
                              reason, created_at, updated_at)
  SELECT md5('address' || n)::uuid, id, 'email', n || '@example.com', md5('email' || n)::uuid, true, true, false,
         'active', '', now(), now() FROM u
), d AS (
  INSERT INTO people_device (id, user_id, platform, provider, token, token_hash, token_kind, app_id, apns_environment,
                             app_version, locale, is_sandbox, status, reason, registered_at, last_seen_at, created_at)
  SELECT md5('device' || n)::uuid, id, 'android', '', n, md5('token' || n)::uuid, '', '', '', '', '', false, 'active',
         '', now(), now(), now() FROM u
), s AS (
  INSERT INTO people_suppression (id, channel, address, address_hash, reason, category_id, is_sandbox, note, source,
                                  created_at)
  SELECT md5('suppression' || n)::uuid, 'email', '', md5('email' || n)::uuid, 'manual', NULL, false, '', '', now()
    FROM u WHERE n::int %% 10 = 0
)
INSERT INTO people_preference (user_id, category_id, channel, is_on, source, updated_at)
SELECT id, (SELECT id FROM people_category WHERE key = 'orders'), 'email', true, '', now() FROM u
"""

# Each notification in a millisecond of its own, spread over all partitions but the last ones; a third of the
# deliveries goes to devices, a third to addresses of people, a third to what the caller named, which people have too.
_NOTIFICATIONS = """
WITH counted AS (
  SELECT k, k %% 8 >= 3 AS is_unfinished, k / 8 * 3 + k %% 8 AS j FROM generate_series(0, %(notifications)s - 1) k
), made AS (
  SELECT *, lpad(to_hex(%(now_ms)s - 1000 * k - (%(span_ms)s * (k / %(notifications)s.0) ^ 4)::bigint), 12, '0') AS ms,
         (%(clients)s::int[])[k %% 20 + 1] AS client, (ARRAY['critical', 'normal', 'bulk'])[k %% 3 + 1] AS lane
    FROM counted
), n AS (
  SELECT *, (ms || '70008000' || lpad(to_hex(k), 12, '0'))::uuid AS id FROM made
), content AS (
  INSERT INTO notifications_content (id, recipients, data, options, inline)
  SELECT id, CASE WHEN is_unfinished THEN jsonb_build_array(jsonb_build_object('user_id', 'person-' || k))
                  ELSE %(recipients)s::jsonb END, '{}', '{}', NULL FROM n
), accepted AS (
  INSERT INTO notifications_notification (id, client_id, mode, event_id, reference, template_version_id, category_id,
    lane, channels, recipients, due_at, expires_at, metadata, request_id, status, created_at)
  SELECT id, client, 'live', '', '', %(version)s, %(category)s, lane, '["push", "email"]', 10, now(),
         now() + interval '3 days', '{}', '', CASE WHEN is_unfinished THEN 'accepted' ELSE 'in_progress' END, now()
    FROM n
), expansion AS (
  INSERT INTO notifications_expansion (id, client_id, due_at, wake_at, position)
  SELECT id, client, now(), now(), 0 FROM n WHERE is_unfinished
), p AS (
  SELECT n.*, i, (j * 10 + i) AS no,
         (ms || '70008' || lpad(to_hex(i * 40503 %% 65536), 4, '0') || lpad(to_hex(i), 11, '0'))::uuid AS delivery
    FROM n CROSS JOIN generate_series(0, 9) i WHERE NOT is_unfinished
), delivery AS (
  INSERT INTO notifications_delivery (id, notification_id, client_id, mode, category_id, user_id, recipient_no,
    channel, platform, address_id, device_id, address_hash, locale, lane, state, reason, detail, stopped_by, claim_no,
    expires_at)
  SELECT p.delivery, p.id, p.client, 'live', %(category)s, CASE WHEN no %% 3 < 2 THEN u.id END, i,
         CASE no %% 3 WHEN 0 THEN 'push' ELSE 'email' END, '',
         CASE WHEN no %% 3 = 1 THEN md5('address' || no)::uuid END,
         CASE WHEN no %% 3 = 0 THEN md5('device' || no)::uuid END,
         CASE WHEN no %% 3 = 0 THEN md5('token' || no)::uuid ELSE md5('email' || no)::uuid END,
         'en', p.lane, 'queued', '', '', '', 0, now() + interval '3 days'
    FROM p JOIN people_user u ON u.external_id = 'person-' || no
), attempt AS (
  INSERT INTO notifications_attempt (id, delivery_id, claim_no, account_id, outcome, scope, provider_ref, provider_code,
                                     detail, is_late)
  SELECT delivery, delivery, 0, %(account)s, 'accepted', '', 'ref-' || no, '', '', false FROM p
), event AS (
  INSERT INTO notifications_event (id, delivery_id, kind, source, is_machine, at, detail)
  SELECT delivery, delivery, 'sent', '', false, now(), '' FROM p
)
INSERT INTO notifications_pending (id, channel, lane, client_id, wake_at, due_at, waiting, claim_no, tries, crashes)
SELECT delivery, CASE no %% 3 WHEN 0 THEN 'push' ELSE 'email' END, lane, client, now() - no * interval '1 ms', now(),
       '', 0, 0, 0 FROM p
"""

_THE_REST = (
    "INSERT INTO notifications_tally (hour, client_id, mode, channel, lane, category_id, from_state, to_state, n) "
    "SELECT date_trunc('hour', now()) - k %% 100 * interval '1 hour', k %% 20, 'live', 'sms', 'bulk', 1, '', 'queued', "
    "1 FROM generate_series(1, 10000) k",
    "INSERT INTO notifications_receiptinbox (account_id, provider_event_id, receipt, received_at, wake_at, looks, "
    "outcome) SELECT %(account)s, 'old-' || k, '{}', now() - interval '1 day', NULL, 0, 'settled' "
    "FROM generate_series(1, 10000) k",
    "INSERT INTO notifications_idempotencykey (id, fingerprint, status, answer, location, created_at) "
    "SELECT md5('key' || k)::uuid, md5('key' || k)::uuid, 202, '{}', '', now() FROM generate_series(1, 10000) k",
    "INSERT INTO notifications_eventkey (id, fingerprint, notification_id, created_at) "
    "SELECT md5('key' || k)::uuid, md5('key' || k)::uuid, md5('key' || k)::uuid, now() "
    "FROM generate_series(1, 10000) k",
)


def fill(share: float = 1) -> None:
    """Thousands waiting in every lane, of twenty clients, over all partitions, and as many people; or a share of it."""
    notifications = int(NOTIFICATIONS * share)
    Client.objects.bulk_create(
        Client(name=f"team {n}", is_verified=True, lanes=["critical", "normal", "bulk"]) for n in range(CLIENTS)
    )
    clients = list(Client.objects.filter(name__startswith="team ").values_list("pk", flat=True))
    [(category, version)] = run(
        "SELECT c.id, v.id FROM people_category c, templates_templateversion v "
        "JOIN templates_template t ON t.id = v.template_id WHERE c.key = 'orders' AND t.key = 'shipped'"
    )
    first_ms = int(time_of(partitions.bounds_of(partitions.PARTITIONED[0])[0][1]).timestamp() * 1000)
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    values = {
        "people": int(PEOPLE * share),
        "notifications": notifications,
        "clients": clients,
        "category": category,
        "version": version,
        "account": ProviderAccount.objects.get(name="mail-main").pk,
        "now_ms": now_ms,
        "span_ms": now_ms - first_ms - 2 * 1000 * notifications,
        "recipients": json.dumps([{"email": "someone@example.com"}] * 10),
    }
    with connection.cursor() as cursor:
        for statement in (_PEOPLE, _NOTIFICATIONS, *_THE_REST):
            cursor.execute(statement, values)


# Table, which rows. What refers to others first; the few people of the world stay.
_FILLED = {
    **dict.fromkeys(partitions.PARTITIONED, "true"),
    "notifications_pending": "true",
    "notifications_expansion": "true",
    "notifications_tally": "true",
    "notifications_receiptinbox": "true",
    "notifications_idempotencykey": "true",
    "notifications_eventkey": "true",
    "people_suppression": "true",
    "people_preference": "true",
    "people_address": "value ~ '^[0-9]+@'",
    "people_device": "token ~ '^[0-9]+$'",
    "people_user": "external_id LIKE 'person-%%'",
    "clients_client": "name LIKE 'team %%'",
}


def drain() -> None:
    """Take it all away again. The pages stay: of such a table the planner expects no rows, however many come."""
    for table, condition in _FILLED.items():
        run(f"DELETE FROM {table} WHERE {condition}")
    run("VACUUM (ANALYZE, TRUNCATE off)")


# --- what was read --------------------------------------------------------------------------------------------


class Read(NamedTuple):
    """What one transaction read of a table, its partitions and indexes together."""

    entries: int  # of the table read through, and of its indexes
    pages: int


_COUNTERS = """
SELECT coalesce(pg_partition_root(t.oid), t.oid)::regclass::text, sum(pg_stat_get_xact_tuples_returned(c.oid))::bigint,
       sum(pg_stat_get_xact_blocks_fetched(c.oid))::bigint
  FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid JOIN pg_class t ON t.oid = coalesce(i.indrelid, c.oid)
 WHERE c.relkind IN ('r', 'i') AND c.relnamespace = 'public'::regnamespace GROUP BY 1
"""


def counters() -> dict[str, Read]:
    """Of each table, what this transaction has read so far. They go on counting where a rollback undoes."""
    return {table: Read(entries, pages) for table, entries, pages in run(_COUNTERS)}


def read_since(before: dict[str, Read]) -> dict[str, Read]:
    after = counters()
    read = {t: Read(after[t].entries - b.entries, after[t].pages - b.pages) for t, b in before.items()}
    return {table: each for table, each in read.items() if any(each)}
