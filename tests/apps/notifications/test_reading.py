"""Reading back: what a client sees of its notifications and deliveries, and what each page costs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from apps.notifications import claims, partitions, records
from apps.notifications.models import Delivery, Event, Notification, Pending
from apps.notifications.selectors.walk import MOST_LOOKED_AT, MOST_NOTIFICATIONS
from apps.notifications.services import holds
from apps.notifications.services.expand import expand
from apps.people import services as people
from apps.people.models import User
from apps.providers.models import ProviderAccount
from notifier.ids import delivery_id, derived_id, range_of, time_of
from notifier.ledger import Claimed, Result
from notifier.message import Channel, Mode
from notifier.outcome import Kind, Outcome
from notifier.pipeline import stopped
from notifier.stages.settle import judge
from tests.apps.notifications.world import EVERYTHING, World, device, run
from tests.apps.rest.callers import Api, assert_problem, make_api, pointers


def listed(api: Api, path: str) -> list[dict[str, Any]]:
    answer = api.get(path)
    assert answer.status_code == 200, answer.content
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def ids(api: Api, path: str) -> list[str]:
    return [row["id"] for row in listed(api, path)]


def walk(api: Api, path: str) -> Iterator[list[dict[str, Any]]]:
    """Every page of a list."""
    cursor = ""
    while cursor is not None:
        answer = api.get(path + (f"&cursor={cursor}" if cursor else "")).json()
        yield answer["data"]
        cursor = answer["next_cursor"]


def send(world: World, *to: Any, **fields: Any) -> str:
    id: str = world.send(*(to or ("bob",)), **fields).json()["id"]
    return id


def take(**options: Any) -> list[Claimed]:
    wanted = list(Pending.objects.values_list("id", flat=True))
    return claims.claim(wanted, lease_s=60, alone=False, **options)


def record(claimed: Claimed, kind: Kind = Kind.ACCEPTED, account: int | None = None, **outcome: Any) -> None:
    said = Outcome(kind, **outcome)
    at = timezone.now().timestamp()
    records.write([Result(claimed, judge(claimed, said), said, account, started_at=at - 0.1, ended_at=at)])


def stop(claimed: Claimed) -> None:
    assert claimed.stop is not None
    records.write([stopped(claimed, claimed.stop)])


def reader(*scopes: str) -> Api:
    """Another key of the same client, which now has these scopes."""
    return make_api("shop", **{**EVERYTHING, "scopes": list(scopes)})


def fill(
    client: int, count: int, *, over: timedelta, per: int = 1, user: int | None = None, odd: str = "", ago: int = 0
) -> None:
    """`count` notifications of `per` sent deliveries each, spread over the time `over`; the oldest one is `odd`."""
    first = datetime.now(UTC) - over - timedelta(days=8)
    for table in partitions.PARTITIONED:
        for start, end in partitions._periods(first, time_of(partitions.bounds_of(table)[0][1])):
            partitions._attach(table, start, end)
    values = {
        "client": client, "count": count, "step": over.total_seconds() * 1000 / count, "ago": ago, "per": per,
        "user": user, "odd": odd,
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(
            """
            CREATE TEMP TABLE made ON COMMIT DROP AS
            SELECT i, to_timestamp(ms / 1000.0) AS at, (lpad(to_hex(ms::bigint), 12, '0') || '7' || substr(m, 1, 3) ||
                   '8' || substr(m, 4, 15))::uuid AS id, (i = %(count)s - 1 AND %(odd)s <> '') AS is_odd
              FROM (SELECT i, md5(i::text) AS m, floor(extract(epoch FROM now()) * 1000 - 1000 - %(ago)s - i * %(step)s)
                           AS ms FROM generate_series(0, %(count)s - 1) i) x;
            INSERT INTO notifications_notification (id, client_id, mode, event_id, reference, template_version_id,
              category_id, lane, channels, recipients, due_at, expires_at, metadata, request_id, status, created_at,
              completed_at)
            SELECT id, %(client)s, 'live', '', 'bulk', NULL, (SELECT id FROM people_category WHERE key = 'orders'),
                   'normal', '["push"]', 1, at, at + interval '1 day', '{}', '',
                   CASE WHEN is_odd THEN 'cancelled' ELSE 'completed' END, at, at FROM made;
            INSERT INTO notifications_delivery (id, notification_id, client_id, mode, category_id, user_id,
              recipient_no, channel, platform, locale, lane, state, reason, detail, stopped_by, claim_no, expires_at)
            SELECT (left(id::text, 18) || '-8' || lpad(to_hex(k), 3, '0') || '-' || substr(md5(i::text || k), 1, 12))
                   ::uuid, id, %(client)s, 'live', (SELECT id FROM people_category WHERE key = 'orders'), %(user)s, 0,
                   'push', 'ios', 'en', 'normal', CASE WHEN is_odd AND k = 1 THEN %(odd)s ELSE 'sent' END, '', '', '',
                   1, at + interval '1 day' FROM made, generate_series(1, %(per)s) k;
            ANALYZE notifications_notification; ANALYZE notifications_delivery;
            DROP TABLE made
            """,
            values,
        )


# --- Lists of notifications -----------------------------------------------------------------------------------


def test_a_list_goes_newest_first_and_its_pages_hold_each_once(world: World) -> None:
    sent = [send(world) for _ in range(7)]
    pages = list(walk(world.api, "/v1/notifications?limit=3"))
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [row["id"] for page in pages for row in page] == sorted(sent, reverse=True)


def test_a_page_that_ends_exactly_with_the_list_says_so(world: World) -> None:
    send(world)
    send(world)
    assert world.api.get("/v1/notifications?limit=2").json()["next_cursor"] is None


def test_what_a_list_shows_is_what_was_accepted(world: World) -> None:
    accepted = world.send("bob", event_id="e1", reference="r1", metadata={"team": "checkout"}).json()
    [row] = listed(world.api, "/v1/notifications")
    assert row.pop("metadata") == {"team": "checkout"}
    assert row.pop("completed_at") is None
    assert row == {name: value for name, value in accepted.items() if name != "duplicate"} | {"status": "in_progress"}


def test_each_filter_finds_its_own(world: World) -> None:
    order = send(world, "ada", reference="r1", event_id="e1")
    code = send(world, "bob", template="code", reference="r1")
    for query, found in {
        "event_id=e1": [order],
        "event_id=e2": [],
        "reference=r1": [code, order],
        "reference=r2": [],
        "user_id=ada": [order],
        "user_id=eve": [],
        "user_id=nobody": [],
        "template=code": [code],
        "template=none-such": [],
        "category=orders": [order],
        "category=none-such": [],
        "status=in_progress": [code, order],
        "status=completed": [],
        "reference=r1&user_id=bob": [code],
        "reference=r2&user_id=bob": [],
        "event_id=e1&user_id=ada&reference=r1&status=in_progress&category=orders&template=shipped": [order],
        "event_id=e1&user_id=bob": [],
        "event_id=e1&reference=r2": [],
        "user_id=ada&template=code": [],
    }.items():
        assert ids(world.api, f"/v1/notifications?{query}") == found, query


def test_a_person_reached_by_several_messages_is_found_once(world: World) -> None:
    first, second = send(world, "ada"), send(world, "ada", "bob")
    pages = list(walk(world.api, "/v1/notifications?user_id=ada&limit=1"))
    assert [[row["id"] for row in page] for page in pages] == [[second], [first]]


@pytest.mark.parametrize(
    ("path", "pointer", "code"),
    [
        ("/v1/notifications?campaign_id=x", "?campaign_id", "unknown_field"),
        ("/v1/notifications?status=done", "?status", "not_allowed"),
        ("/v1/notifications?from=yesterday", "?from", "invalid_time"),
        ("/v1/notifications?limit=101", "?limit", "out_of_range"),
        ("/v1/notifications?event_id=", "?event_id", "too_short"),
        ("/v1/deliveries?state=lost", "?state", "not_allowed"),
        ("/v1/deliveries?channel=fax", "?channel", "not_allowed"),
        ("/v1/deliveries?notification_id=1", "?notification_id", "wrong_type"),
        ("/v1/deliveries?campaign_id=x", "?campaign_id", "unknown_field"),
    ],
)
def test_a_filter_that_makes_no_sense_is_named(world: World, path: str, pointer: str, code: str) -> None:
    assert pointers(assert_problem(world.api.get(path), 422, "validation-failed")) == [(pointer, code)]


def test_times_bound_a_list_from_included_to_excluded(world: World) -> None:
    first, second, third = (Notification.objects.get(pk=send(world)) for _ in range(3))
    at = [row.created_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ") for row in (first, second, third)]
    for path, key in (("/v1/notifications?", "id"), ("/v1/deliveries?channel=email&", "notification_id")):
        assert [row[key] for row in listed(world.api, f"{path}from={at[1]}&to={at[2]}")] == [str(second.pk)]
        assert listed(world.api, f"{path}from={at[2]}&to={at[0]}") == []
    assert listed(world.api, "/v1/notifications?from=0001-01-01T00:00:00Z&to=9999-12-31T23:59:59Z") != []
    assert listed(world.api, "/v1/notifications?to=0001-01-01T00:00:00Z") == []


def test_without_from_a_list_looks_back_seven_days(world: World) -> None:
    fill(world.api.client.pk, 10, over=timedelta(days=10), user=User.objects.get(external_id="ada").pk)
    for path in (
        "/v1/notifications?",
        "/v1/notifications?user_id=ada&",
        "/v1/deliveries?",
        "/v1/deliveries?user_id=ada&",
    ):
        assert len(listed(world.api, path)) == 7
        since = (datetime.now(UTC) - timedelta(days=20)).strftime("%Y-%m-%dT%H:%M:%SZ")
        assert len(listed(world.api, f"{path}from={since}")) == 10


def test_what_is_named_by_its_id_is_found_however_old(world: World) -> None:
    fill(world.api.client.pk, 2, over=timedelta(days=40))
    oldest = Notification.objects.order_by("id").first()
    assert oldest is not None
    accepted = send(world, event_id="e1")
    run("UPDATE notifications_eventkey SET notification_id = %s WHERE notification_id = %s", str(oldest.pk), accepted)
    assert ids(world.api, "/v1/notifications?event_id=e1") == [str(oldest.pk)]
    assert len(ids(world.api, f"/v1/deliveries?notification_id={oldest.pk}")) == 1
    assert world.api.get(f"/v1/notifications/{oldest.pk}").json()["counts"] == {"sent": 1}
    yesterday = (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert ids(world.api, f"/v1/notifications?event_id=e1&from={yesterday}") == []
    assert ids(world.api, f"/v1/deliveries?notification_id={oldest.pk}&from={yesterday}") == []


# --- Cursors --------------------------------------------------------------------------------------------------


def test_a_cursor_belongs_to_its_list_its_filters_and_its_owner(world: World) -> None:
    for _ in range(2):
        send(world, "ada")
    of_all = world.api.get("/v1/notifications?limit=1").json()["next_cursor"]
    of_deliveries = world.api.get("/v1/deliveries?limit=1").json()["next_cursor"]
    assert world.api.get(f"/v1/notifications?limit=50&cursor={of_all}").status_code == 200
    for api, path in [
        (world.api, f"/v1/notifications?status=completed&cursor={of_all}"),
        (world.api, f"/v1/deliveries?cursor={of_all}"),
        (world.api, f"/v1/notifications?cursor={of_deliveries}"),
        (world.api, f"/v1/deliveries?channel=push&cursor={of_deliveries}"),
        (world.api, "/v1/notifications?cursor=forged"),
        (make_api("rival"), f"/v1/notifications?cursor={of_all}"),
        (make_api("shop", Mode.TEST), f"/v1/notifications?cursor={of_all}"),
    ]:
        assert_problem(api.get(path), 400, "invalid-cursor")


def test_an_old_cursor_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    send(world, "ada", "bob")
    cursor = world.api.get("/v1/deliveries?limit=1").json()["next_cursor"]
    monkeypatch.setattr("apps.rest.pagination.CURSOR_LIFE_S", -1)
    assert_problem(world.api.get(f"/v1/deliveries?cursor={cursor}"), 400, "invalid-cursor")


# --- One notification -----------------------------------------------------------------------------------------


def status(world: World, id: str) -> tuple[str, dict[str, int]]:
    answer = world.api.get(f"/v1/notifications/{id}").json()
    [row] = [row for row in listed(world.api, "/v1/notifications") if row["id"] == id]
    assert row["status"] == answer["status"], "the list and the notification disagree"
    assert id in ids(world.api, f"/v1/notifications?status={answer['status']}")
    return answer["status"], answer["counts"]


def test_the_status_says_how_it_is_before_any_sweep(world: World) -> None:
    items = [{"event_id": "e", "template": "shipped", "data": {"order": "A"}, "to": [{"user_id": "bob"}],
              "channels": ["email"]}]  # fmt: skip
    batch = world.api.post("/v1/notifications/batch", {"items": items}, headers={"Idempotency-Key": "k"})
    id = batch.json()["results"][0]["id"]
    assert status(world, id) == ("accepted", {})
    run("UPDATE notifications_expansion SET due_at = now(), wake_at = now()")
    expand([UUID(id)])
    assert status(world, id) == ("in_progress", {"queued": 1})
    [claimed] = take()
    assert status(world, id) == ("in_progress", {"sending": 1})
    record(claimed, Kind.UNAVAILABLE)
    assert status(world, id) == ("in_progress", {"retrying": 1})
    run("UPDATE notifications_pending SET due_at = now()")
    record(take()[0])
    assert status(world, id) == ("completed", {"sent": 1})
    assert Notification.objects.get(pk=id).status == "in_progress", "no sweep ran, so this is the stored word"


def test_what_is_due_later_is_scheduled_whether_laid_out_or_not(world: World) -> None:
    for delay in (timedelta(seconds=40), timedelta(hours=2)):
        id = send(world, send_at=(timezone.now() + delay).isoformat(), channels=["email"])
        assert status(world, id)[0] == "scheduled"


def test_a_notification_that_reaches_nobody_is_completed_at_once(world: World) -> None:
    assert status(world, send(world, "eve", channels=["sms"])) == ("completed", {"suppressed": 1})


def test_a_sibling_with_the_same_first_bytes_is_kept_apart(world: World) -> None:
    """One in 4,096 notifications of a millisecond shares the range of ids that deliveries are found by."""
    mine = UUID(send(world, channels=["email"]))
    record(take()[0])
    twin = UUID(int=mine.int ^ 1)
    copy = "INSERT INTO {0} SELECT (jsonb_populate_record(x, %s::jsonb)).* FROM {0} x WHERE id = %s"
    run(copy.format("notifications_notification"), json.dumps({"id": str(twin)}), str(mine))
    theirs = delivery_id(twin, "another")
    changed = {"id": str(theirs), "notification_id": str(twin), "state": "queued"}
    run(copy.format("notifications_delivery"), json.dumps(changed), str(Delivery.objects.get().pk))
    run("INSERT INTO notifications_pending (id, channel, lane, client_id, wake_at, due_at, waiting, claim_no, tries, "
        "crashes) SELECT id, channel, lane, client_id, now(), now(), '', 0, 0, 0 FROM notifications_delivery "
        "WHERE id = %s", str(theirs))  # fmt: skip
    assert status(world, str(mine)) == ("completed", {"sent": 1})
    assert status(world, str(twin)) == ("in_progress", {"queued": 1})
    assert ids(world.api, f"/v1/deliveries?notification_id={twin}") == [str(theirs)]
    for path in ("/v1/deliveries?limit=1", "/v1/deliveries?user_id=bob&limit=1"):
        assert sorted(row["notification_id"] for page in walk(world.api, path) for row in page) == sorted(
            [str(mine), str(twin)]
        )
    assert sorted(row["id"] for page in walk(world.api, "/v1/notifications?user_id=bob&limit=1") for row in page) == (
        sorted([str(mine), str(twin)])
    )


def test_the_first_hundred_deliveries_come_along_and_the_cursor_leads_to_the_rest(world: World) -> None:
    fill(world.api.client.pk, 1, over=timedelta(hours=1), per=230)
    [id] = ids(world.api, "/v1/notifications")
    one = world.api.get(f"/v1/notifications/{id}").json()
    assert one["counts"] == {"sent": 230}
    assert len(one["deliveries"]) == 100
    path = f"/v1/deliveries?notification_id={id}&limit=100&cursor={one['next_cursor']}"
    second = world.api.get(path).json()
    third = world.api.get(path.replace(one["next_cursor"], second["next_cursor"])).json()
    seen = [row["id"] for row in one["deliveries"] + second["data"] + third["data"]]
    assert third["next_cursor"] is None
    assert len(seen) == len(set(seen)) == 230


def test_what_is_not_yours_does_not_exist(world: World) -> None:
    id = send(world, "ada", event_id="e1", reference="r1")
    [delivery, *_] = ids(world.api, "/v1/deliveries")
    for api in (make_api("rival"), make_api("shop", Mode.TEST, **EVERYTHING)):
        for path in (f"/v1/notifications/{id}", f"/v1/deliveries/{delivery}"):
            assert_problem(api.get(path), 404, "not-found")
        for query in ("notifications", "notifications?event_id=e1", "notifications?reference=r1",
                      "notifications?user_id=ada", "deliveries", f"deliveries?notification_id={id}",
                      "deliveries?user_id=ada"):  # fmt: skip
            assert listed(api, f"/v1/{query}") == [], query


def test_reading_needs_the_scope_and_sending_does_not_give_it(world: World) -> None:
    id = send(world)
    api = make_api("writer", scopes=["send", "users", "templates"])
    for path in ("notifications", f"notifications/{id}", "deliveries", f"deliveries/{id}"):
        assert assert_problem(api.get(f"/v1/{path}"), 403, "scope-missing")["scope"] == "read"
    api = make_api("reader", scopes=["read"])
    assert assert_problem(api.post("/v1/notifications", {}), 403, "scope-missing")["scope"] == "send"
    refused = assert_problem(api.delete("/v1/notifications"), 405, "method-not-allowed")
    assert refused["status"] == 405


# --- Lists of deliveries --------------------------------------------------------------------------------------


def test_a_clients_deliveries_come_newest_notification_first_each_once(world: World) -> None:
    sent = [send(world, "ada", "bob", "eve") for _ in range(3)]
    rows = [row for page in walk(world.api, "/v1/deliveries?limit=4") for row in page]
    keys = [(row["notification_id"], row["id"]) for row in rows]
    assert keys == sorted(keys, reverse=True)
    assert {key[0] for key in keys} == set(sent)
    assert len(set(keys)) == len(keys) == Delivery.objects.count()
    by_user = [row for page in walk(world.api, "/v1/deliveries?user_id=ada&limit=2") for row in page]
    assert [row["id"] for row in by_user] == [row["id"] for row in rows if row["user_id"] == "ada"]


def test_each_filter_of_deliveries_finds_its_own(world: World) -> None:
    id = send(world, "ada", "bob", "eve")
    account = ProviderAccount.objects.get(name="mail-main")
    mail = next(claimed for claimed in take() if claimed.channel is Channel.EMAIL)
    record(mail, account=account.pk)
    for query, expected in {
        "channel=email": {("ada", "email"), ("bob", "email"), ("eve", "email")},
        "state=sent": {(listed(world.api, f"/v1/deliveries?provider={account.name}")[0]["user_id"], "email")},
        "state=sending&user_id=ada&channel=push": {("ada", "push")},
        "state=queued": set(),
        "reason=no_device": {("bob", "push"), ("eve", "push")},
        "reason=no_device&user_id=eve": {("eve", "push")},
        "provider=none-such": set(),
        "user_id=nobody": set(),
        f"notification_id={id}&user_id=bob&state=suppressed": {("bob", "push"), ("bob", "sms")},
        f"notification_id={delivery_id(UUID(id), 'x')}": set(),
    }.items():
        found = {(row["user_id"], row["channel"]) for row in listed(world.api, f"/v1/deliveries?{query}")}
        assert found == expected, query


def test_a_lists_row_says_who_what_and_why(world: World) -> None:
    id = send(world, "ghost", {"email": "someone@example.com"}, channels=["email"])
    stranger, ghost = sorted(listed(world.api, "/v1/deliveries"), key=lambda row: row["user_id"] or "")
    assert (ghost["user_id"], ghost["recipient"], ghost["state"]) == ("ghost", 0, "suppressed")
    assert ghost["reason"] == {"code": "user_not_found", "detail": None}
    assert (stranger["user_id"], stranger["recipient"], stranger["state"]) == (None, 1, "queued")
    assert (stranger["reason"], stranger["waiting"], stranger["notification_id"]) == (None, None, id)
    assert stranger["due_at"].endswith("Z")
    assert world.api.get(f"/v1/notifications/{id}").json()["deliveries"] in ([stranger, ghost], [ghost, stranger])


def test_waiting_is_told_while_it_is_true(world: World) -> None:
    send(world, channels=["email"])

    def waiting() -> tuple[Any, Any, bool]:
        [row] = listed(world.api, "/v1/deliveries")
        return row["state"], row["waiting"], row["due_at"] is not None

    assert waiting() == ("queued", None, True)
    record(take()[0], Kind.UNAVAILABLE)
    assert waiting() == ("retrying", "retry_backoff", True)
    run("UPDATE notifications_pending SET due_at = now()")
    assert waiting() == ("retrying", None, True)
    holds.pause("channel", "email", by="test")
    stop(take()[0])
    assert waiting() == ("retrying", "channel_paused", True)
    run("UPDATE notifications_pending SET due_at = now()")
    assert waiting() == ("retrying", "channel_paused", True), "a pause does not end by itself"
    run("UPDATE notifications_pending SET lease_until = now() + interval '1 minute'")
    assert waiting() == ("sending", None, False)


# --- One delivery: why? ---------------------------------------------------------------------------------------


def why(api: Api, **filters: str) -> dict[str, Any]:
    query = "&".join(f"{name}={value}" for name, value in filters.items())
    [row] = listed(api, f"/v1/deliveries?{query}")
    answer: dict[str, Any] = api.get(f"/v1/deliveries/{row['id']}").json()
    assert {name: answer[name] for name in row} == row, "the list and the delivery disagree"
    return answer


def passed(delivery: dict[str, Any]) -> list[str]:
    return [f"{decision['gate']}:{decision['result']}" for decision in delivery["decisions"]]


def test_an_address_is_masked_without_the_scope_users_and_a_token_always(world: World) -> None:
    send(world, "ada", {"phone": "+4915112345678"}, {"device": {"platform": "android", "token": "raw-token-5678"}})

    def strangers(api: Api) -> set[tuple[str, str]]:
        rows = [row for row in listed(api, "/v1/deliveries") if row["user_id"] is None]
        return {(row["channel"], api.get(f"/v1/deliveries/{row['id']}").json()["address"]) for row in rows}

    full = reader("read", "users")
    assert why(full, user_id="ada", channel="email")["address"] == "delivered+ada@sandbox.invalid"
    assert why(full, user_id="ada", channel="push")["address"] == "...-ada"
    assert strangers(full) == {("sms", "+4915112345678"), ("push", "...5678")}
    masked = reader("read")
    assert why(masked, user_id="ada", channel="email")["address"] == "...alid"
    assert why(masked, user_id="ada", channel="sms")["address"] == "...0006"
    assert strangers(masked) == {("sms", "...5678"), ("push", "...5678")}


def test_what_was_sent_passed_every_gate_and_tells_its_tries(world: World) -> None:
    account = ProviderAccount.objects.get(name="mail-main")
    send(world, channels=["email"])
    record(take()[0], Kind.UNAVAILABLE, account.pk, code="ServiceUnavailable", http_status=503)
    run("UPDATE notifications_pending SET due_at = now()")
    record(take()[0], account=account.pk, provider_ref="ref-2", http_status=202)
    answer = why(world.api)
    assert passed(answer) == [
        "exists:pass", "mode:pass", "hold:pass", "expiry:pass", "preference:pass", "suppression:pass", "address:pass",
        "provider:pass",
    ]  # fmt: skip
    assert answer["decisions"][1] == {"gate": "mode", "result": "pass", "value": "live"}
    assert answer["decisions"][4]["value"] == {"category": "orders", "channel": "email"}
    assert answer["decisions"][-1]["value"] == answer["provider"] == "mail-main"
    assert [(a["number"], a["provider"], a["outcome"], a["http_status"], a["provider_code"], a["late"])
            for a in answer["attempts"]] == [
        (1, "mail-main", "unavailable", 503, "ServiceUnavailable", False),
        (2, "mail-main", "accepted", 202, None, False),
    ]  # fmt: skip
    assert answer["provider_ref"] == "ref-2"
    assert answer["attempts"][0]["started_at"] < answer["attempts"][0]["ended_at"] <= answer["attempts"][1]["ended_at"]
    assert (answer["state"], answer["mode"], answer["category"], answer["lane"]) == ("sent", "live", "orders", "normal")
    assert answer["sent_at"] is not None
    assert answer["ended_at"] is not None


def test_what_came_back_is_told_in_its_order(world: World) -> None:
    send(world, channels=["email"])
    record(take()[0])
    delivery = Delivery.objects.get()
    for number, (kind, machine) in enumerate([("delivered", False), ("opened", True), ("clicked", False)]):
        at, said = timezone.now() + timedelta(seconds=number), "seen" if machine else ""
        Event.objects.create(id=derived_id(delivery.pk, "event", kind), delivery_id=delivery.pk, kind=kind,
                             source="mail-main", is_machine=machine, at=at, detail=said)  # fmt: skip
    found = why(world.api)["events"]
    assert [(event["kind"], event["machine"], event["detail"]) for event in found] == [
        ("delivered", False, None), ("opened", True, "seen"), ("clicked", False, None),
    ]  # fmt: skip


def test_many_tries_are_told_by_the_last_hundred(world: World) -> None:
    send(world, channels=["email"])
    for _ in range(103):
        run("UPDATE notifications_pending SET due_at = now()")
        record(take()[0], Kind.THROTTLED, retry_after_s=1)
    numbers = [attempt["number"] for attempt in why(world.api)["attempts"]]
    assert numbers == list(range(4, 104))


def opt_out(world: World) -> None:
    people.set_preferences("bob", choices={"orders": {"email": False}})


def complain(world: World) -> None:
    people.suppress(Channel.EMAIL, "bob@example.com", "complaint", source="test")


def expire(world: World) -> None:
    run("UPDATE notifications_delivery SET expires_at = now()")


def cancel(world: World) -> None:
    holds.pause("notification", str(Notification.objects.get().pk), by="test")
    run("UPDATE notifications_hold SET action = 'cancel', reason = 'by_operator'")


@pytest.mark.parametrize(
    ("spoil", "state", "stopped"),
    [
        (opt_out, "suppressed", {"gate": "preference", "result": "stop", "code": "category_opt_out",
                                 "value": {"category": "orders", "channel": "email", "source": "user"}}),
        (complain, "suppressed", {"gate": "suppression", "result": "stop", "code": "suppressed_complaint",
                                  "value": "complaint"}),
        (expire, "expired", {"gate": "expiry", "result": "stop", "code": "expired_waiting"}),
        (cancel, "cancelled", {"gate": "hold", "result": "stop", "code": "by_operator", "value": "notification"}),
    ],
)  # fmt: skip
def test_the_gate_that_said_no_comes_last_with_what_it_saw(
    world: World, spoil: Any, state: str, stopped: dict[str, Any]
) -> None:
    send(world, channels=["email"])
    spoil(world)
    stop(take()[0])
    answer = why(world.api)
    assert answer["state"] == state
    assert answer["reason"]["code"] == stopped["code"]
    assert answer["decisions"][-1] == stopped
    assert all(decision["result"] == "pass" for decision in answer["decisions"][:-1])
    order = ["exists", "mode", "hold", "expiry", "preference", "suppression", "address", "provider"]
    assert [decision["gate"] for decision in answer["decisions"]] == order[: order.index(stopped["gate"]) + 1]


def test_a_cancel_by_the_caller_stopped_at_the_hold(world: World) -> None:
    id = send(world, channels=["email"])
    world.api.post(f"/v1/notifications/{id}/cancel", {})
    answer = why(world.api)
    assert answer["decisions"][-1] == {"gate": "hold", "result": "stop", "code": "by_caller"}


def test_a_person_who_is_not_there_stopped_at_the_first_gate(world: World) -> None:
    send(world, "ghost")
    answer = why(world.api)
    assert passed(answer) == ["exists:stop"]
    assert (answer["user_id"], answer["address"]) == ("ghost", None)


def test_what_waits_tells_the_gate_it_waits_at(world: World) -> None:
    send(world, channels=["email"])
    assert passed(why(world.api))[-1] == "address:pass", "no provider is chosen before it is claimed"
    holds.pause("channel", "email", by="test")
    stop(take()[0])
    assert why(world.api)["decisions"][-1] == {"gate": "hold", "result": "wait", "value": "channel_paused"}
    run("UPDATE notifications_pending SET due_at = now(), waiting = ''")
    assert passed(why(world.api))[-1] == "address:pass", "the pause is over, whatever the delivery remembers"
    run("UPDATE notifications_pending SET due_at = now() + interval '1 hour', waiting = 'provider_unavailable'")
    assert why(world.api)["decisions"][-1] == {"gate": "provider", "result": "wait", "value": "provider_unavailable"}


def test_what_is_gone_of_the_content_is_shown_as_unknown(world: World) -> None:
    send(world, {"email": "someone@example.com"})
    run("DELETE FROM notifications_content")
    answer = why(world.api)
    assert (answer["user_id"], answer["address"]) == (None, None)


# --- What it costs --------------------------------------------------------------------------------------------

LISTS = [
    "/v1/notifications?",
    "/v1/notifications?reference=bulk&",
    "/v1/notifications?status=completed&",
    "/v1/notifications?user_id=ada&",
    "/v1/deliveries?",
    "/v1/deliveries?state=sent&",
    "/v1/deliveries?user_id=ada&",
]


def our_statements(api: Api, path: str) -> list[str]:
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert api.get(path).status_code == 200
    return [query["sql"] for query in queries if "notifications_" in query["sql"]]


@pytest.mark.parametrize("path", LISTS)
def test_a_page_costs_the_same_number_of_statements_for_one_row_and_for_a_hundred(world: World, path: str) -> None:
    fill(world.api.client.pk, 300, over=timedelta(hours=5), user=User.objects.get(external_id="ada").pk)
    one, many = (our_statements(world.api, f"{path}limit={limit}") for limit in (1, 100))
    assert len(one) == len(many) == 1


def test_one_notification_and_one_delivery_cost_a_fixed_number_of_statements(world: World) -> None:
    device("ada", "sandbox-ok-2")
    small, large = send(world, "bob", channels=["email"]), send(world, *["ada", "bob", "eve", "ghost"])
    counts = {len(our_statements(world.api, f"/v1/notifications/{id}")) for id in (small, large)}
    assert max(counts) <= 3
    for id in ids(world.api, "/v1/deliveries"):
        assert len(our_statements(world.api, f"/v1/deliveries/{id}")) <= 4


PARTITION = re.compile(r"notifications_(?:notification|delivery|content|attempt|event)_p\d{8}")


def plan(statement: str, *, run_it: bool = False) -> str:
    options = "ANALYZE, TIMING OFF, BUFFERS" if run_it else "COSTS OFF"
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN ({options}) {statement}")
        return "\n".join(row[0] for row in cursor.fetchall())


def test_every_statement_opens_only_the_partitions_of_its_window(world: World) -> None:
    fill(world.api.client.pk, 500, over=timedelta(days=70), user=User.objects.get(external_id="ada").pk, per=2)
    assert len(partitions.bounds_of("notifications_delivery")) > 10
    old = datetime.now(UTC) - timedelta(days=40)
    window = f"from={old:%Y-%m-%dT%H:%M:%SZ}&to={old + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"
    oldest = Delivery.objects.order_by("id").first()
    assert oldest is not None
    paths = [f"{path}{window}" for path in LISTS]
    paths += [f"/v1/notifications/{oldest.notification_id}", f"/v1/deliveries/{oldest.pk}"]
    paths += [
        f"/v1/deliveries?notification_id={oldest.notification_id}",
        f"/v1/notifications?status=cancelled&{window}",
    ]
    paths += [f"/v1/deliveries?state=failed&{window}"]
    for path in paths:
        for statement in our_statements(world.api, path):
            by_table: dict[str, set[str]] = {}
            for name in PARTITION.findall(plan(statement)):
                by_table.setdefault(name.rpartition("_")[0], set()).add(name)
            assert all(len(opened) <= 2 for opened in by_table.values()), (path, by_table)


def pages_read(statement: str) -> int:
    """Pages of the notifications' tables that a statement read: its cost, without the noise of a clock."""
    nodes = re.split(r"\n\s*->", plan(statement, run_it=True).split("Planning:")[0])
    read = [
        re.search(r"Buffers: shared hit=(\d+)", node) for node in nodes if re.search(r"Scan.* on notifications_", node)
    ]
    assert any(read)
    return sum(int(found[1]) for found in read if found)


@pytest.mark.parametrize("path", LISTS)
def test_a_deep_page_costs_what_the_first_one_does(world: World, path: str) -> None:
    fill(world.api.client.pk, 6000, over=timedelta(days=6), user=User.objects.get(external_id="ada").pk)
    middle = Notification.objects.order_by("id")[300]
    deep = f"{path}limit=20&to={middle.created_at + timedelta(milliseconds=1):%Y-%m-%dT%H:%M:%S.%fZ}"
    [first], [last] = our_statements(world.api, f"{path}limit=20"), our_statements(world.api, deep)
    assert len(listed(world.api, deep)) == 20
    assert pages_read(last) <= 1.5 * pages_read(first) + 5, plan(last, run_it=True)


def test_a_backlog_makes_no_page_read_more_than_it_looks_at(world: World) -> None:
    """The planner once began with the whole of Delivery, for each row that it looked at."""
    ada = User.objects.get(external_id="ada").pk
    fill(world.api.client.pk, 40_000, over=timedelta(days=20), per=3, user=ada)
    run("UPDATE notifications_notification SET status = 'in_progress', completed_at = NULL")
    run("INSERT INTO notifications_pending (id, channel, lane, client_id, wake_at, due_at, waiting, claim_no, tries, "
        "crashes) SELECT id, 'push', 'normal', client_id, now(), now(), '', 0, 0, 0 FROM notifications_delivery "
        "ORDER BY id DESC LIMIT 60000")  # fmt: skip
    run("ANALYZE notifications_notification, notifications_delivery, notifications_pending")
    run("SET LOCAL statement_timeout = '20s'")
    since = datetime.now(UTC) - timedelta(days=21)
    for path in [*LISTS, "/v1/notifications?status=in_progress&", "/v1/deliveries?state=sending&"]:
        for statement in our_statements(world.api, f"{path}from={since:%Y-%m-%dT%H:%M:%SZ}"):
            assert pages_read(statement) <= 20 * MOST_LOOKED_AT, f"{path}\n{plan(statement)}"


def test_a_filter_that_fits_almost_nothing_ends_its_page_early_and_finds_it_all_the_same(world: World) -> None:
    fill(world.api.client.pk, MOST_LOOKED_AT + 50, over=timedelta(days=6), odd="failed")
    pages = list(walk(world.api, "/v1/notifications?status=cancelled"))
    assert [len(page) for page in pages] == [0, 1]
    pages = list(walk(world.api, "/v1/deliveries?state=failed"))
    assert [len(page) for page in pages] == [0] * (MOST_LOOKED_AT // MOST_NOTIFICATIONS) + [1]


def test_so_it_does_in_one_long_notification(world: World) -> None:
    ada = User.objects.get(external_id="ada").pk
    fill(world.api.client.pk, 2, over=timedelta(hours=2), per=MOST_LOOKED_AT // 2 + 100, odd="failed", user=ada)
    for path in ("/v1/deliveries?state=failed", "/v1/deliveries?user_id=ada&state=failed"):
        assert [len(page) for page in walk(world.api, path)] == [0, 1]
    pages = [[row["status"] for row in page] for page in walk(world.api, "/v1/notifications?user_id=ada")]
    assert sorted(status for page in pages for status in page) == ["cancelled", "completed"]


def test_a_person_of_many_messages_is_read_in_steps(world: World) -> None:
    ada = User.objects.get(external_id="ada").pk
    fill(world.api.client.pk, MOST_NOTIFICATIONS + 200, over=timedelta(days=6), odd="failed", user=ada)
    pages = list(walk(world.api, "/v1/notifications?user_id=ada&status=cancelled"))
    assert [len(page) for page in pages] == [0, 1]
    assert sum(len(page) for page in walk(world.api, "/v1/notifications?user_id=ada&limit=100")) == (
        MOST_NOTIFICATIONS + 200
    )
    first, last = range_of(UUID(pages[1][0]["id"]))
    assert first <= UUID(ids(world.api, f"/v1/deliveries?notification_id={pages[1][0]['id']}")[0]) <= last
