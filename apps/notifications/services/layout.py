"""Laying out: from the entries of `to` to one delivery per address, in a fixed number of statements.

A delivery's id is derived from (notification, user, channel, address): laying the same work out twice inserts
nothing twice, and entries that come to the same person and address give one message.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection

from apps.notifications.arrays import jsons, plain, texts
from apps.people.models import Category
from notifier.ids import delivery_id
from notifier.ledger import Stop
from notifier.lifecycle import State
from notifier.message import Channel
from notifier.stages.gates import Facts, decide

_CATEGORIES_FRESH_S = 1.5
DEFAULT_LOCALE = "en"


@dataclass(frozen=True, slots=True)
class Outline:
    """What laying out needs to know of one notification, beside its entries."""

    id: UUID
    client_id: int
    is_client_active: bool
    is_client_verified: bool
    mode: str
    category: Category
    campaign_id: UUID | None
    template_version_id: int | None
    written_channels: frozenset[str]  # what the template (or the content) has a part for
    channels: tuple[str, ...]  # what may be used, in order
    lane: str
    due_at: datetime | None  # None: now
    expires_at: datetime
    default_locale: str = DEFAULT_LOCALE


class Place(NamedTuple):
    """An address or device of a person."""

    id: UUID
    hash: UUID
    status: str
    is_sandbox: bool
    platform: str = ""
    is_primary: bool = False
    locale: str = ""


@dataclass(slots=True)
class Person:
    id: int
    external_id: str
    locale: str
    is_opted_out: bool
    is_erased: bool
    addresses: dict[str, list[Place]] = field(default_factory=dict)
    devices: list[Place] = field(default_factory=list)
    choices: dict[tuple[int, str], bool] = field(default_factory=dict)


class Row(NamedTuple):
    """One Delivery to be."""

    id: UUID
    outline: int  # position in the list of outlines
    user_id: int | None
    recipient_no: int
    channel: str
    platform: str
    address_id: UUID | None
    device_id: UUID | None
    address_hash: UUID | None
    locale: str
    stop: Stop | None


class Entry(NamedTuple):
    outline: int
    number: int  # its place in `to`
    value: Mapping[str, Any]


_categories: tuple[float, dict[int, Category]] = (float("-inf"), {})


def categories(*, fresh: bool = False) -> dict[int, Category]:
    """All categories by id, at most 1.5 s old."""
    global _categories
    read_at, found = _categories
    if fresh or time.monotonic() - read_at > _CATEGORIES_FRESH_S:
        found = Category.objects.in_bulk()
        _categories = (time.monotonic(), found)
    return found


def category_by_key(key: str) -> Category | None:
    return next((category for category in categories().values() if category.key == key), None)


def lay_out(outlines: Sequence[Outline], entries: Sequence[Entry], *, wake_in_s: float = 0.0) -> list[tuple[UUID, str]]:
    """Insert the deliveries of `entries`; returns (id, channel) of those that are to be sent, new ones only.

    Two reads and one write, whatever the number of entries. `wake_in_s`: the relay leaves them alone so long,
    because the caller rings them itself. Inside the caller's transaction.
    """
    rows = plan(outlines, entries)
    return insert(outlines, rows, wake_in_s=wake_in_s) if rows else []


def plan(outlines: Sequence[Outline], entries: Sequence[Entry]) -> list[Row]:
    """The deliveries of `entries`, gates passed or not, each id once, sorted by id. Writes nothing."""
    people = People.read(outlines, entries)
    rows: dict[UUID, Row] = {}
    for entry in entries:
        for row in _rows_of(outlines[entry.outline], entry, people):
            rows.setdefault(row.id, row)
    return sorted(rows.values(), key=lambda row: row.id)


def _rows_of(outline: Outline, entry: Entry, people: People) -> Iterable[Row]:
    value = entry.value
    allowed = [channel for channel in outline.channels if channel in value.get("channels", outline.channels)]
    if "user_id" in value:
        person = people.by_external_id.get(value["user_id"])
        if person is None:
            stop = decide(Facts(outline.mode, allowed[0] if allowed else "push", user_exists=False))
            return [_row(outline, entry, None, allowed[0] if allowed else "push", None, stop, value["user_id"])]
        return [row for channel in allowed for row in _rows_for_person(outline, entry, person, channel, people)]
    channel = "push" if "device" in value else "sms" if "phone" in value else "email"
    return [_row_for_raw(outline, entry, channel, is_allowed=channel in allowed, people=people)]


def _rows_for_person(outline: Outline, entry: Entry, person: Person, channel: str, people: People) -> list[Row]:
    places, target = _places(person, channel)
    if channel not in outline.written_channels:
        places, target = [], "no_content"
    if not places:
        stop = decide(_facts(outline, channel, person, None, target, people))
        return [_row(outline, entry, person, channel, None, stop)]
    return [
        _row(outline, entry, person, channel, place, decide(_facts(outline, channel, person, place, "active", people)))
        for place in places
    ]


def _places(person: Person, channel: str) -> tuple[list[Place], str]:
    """Where a person is reached on a channel: every active device, or the one address that is best."""
    if channel == Channel.PUSH:
        active = [device for device in person.devices if device.status == "active"]
        return active, "retired" if person.devices else "none"
    known = person.addresses.get(channel, [])
    active = sorted((a for a in known if a.status == "active"), key=lambda a: (not a.is_primary, a.id))
    return active[:1], "retired" if known else "none"


def _row_for_raw(outline: Outline, entry: Entry, channel: str, *, is_allowed: bool, people: People) -> Row:
    """A raw address: its one owner's if it has one; of several owners the strictest preference counts."""
    hashed = UUID(entry.value["hash"])
    owners = people.by_hash.get(hashed, [])
    target = "active" if is_allowed and channel in outline.written_channels else "no_content"
    if len(owners) == 1:
        person = owners[0]
        places = person.devices if channel == Channel.PUSH else person.addresses.get(channel, [])
        place = next(place for place in places if place.hash == hashed)
        if target == "active" and place.status != "active":
            target = "retired"
        facts = _facts(outline, channel, person, place, target, people)
        return _row(outline, entry, person, channel, place, decide(facts))
    platform = entry.value.get("device", {}).get("platform", "")
    place = Place(hashed, hashed, "active", bool(entry.value.get("is_sandbox")), platform)
    facts = _facts(outline, channel, _strictest(owners, outline, channel), place, target, people)
    return _row(outline, entry, None, channel, place, decide(facts), is_raw=True)


def _strictest(owners: list[Person], outline: Outline, channel: str) -> Person | None:
    if not owners:
        return None
    key = (outline.category.pk, channel)
    choices = [owner.choices.get(key, outline.category.is_on_by_default) for owner in owners]
    return Person(
        0,
        "",
        "",
        is_opted_out=any(owner.is_opted_out for owner in owners),
        is_erased=False,
        choices={key: all(choices)},
    )


def _facts(
    outline: Outline, channel: str, person: Person | None, place: Place | None, target: str, people: People
) -> Facts:
    category = outline.category
    suppressed_by, since = people.suppression(channel, place.hash if place else None, category.pk)
    return Facts(
        mode=outline.mode,
        channel=channel,
        is_client_active=outline.is_client_active,
        is_client_verified=outline.is_client_verified,
        is_user_erased=bool(person and person.is_erased),
        is_sandbox_recipient=bool(place and place.is_sandbox),
        category=category.key,
        is_mandatory=category.is_mandatory,
        is_on_by_default=category.is_on_by_default,
        is_opted_out=bool(person and person.is_opted_out),
        preference=person.choices.get((category.pk, channel)) if person else None,
        suppressed_by=suppressed_by,
        suppressed_since=since,
        target=target,
    )


def _row(
    outline: Outline,
    entry: Entry,
    person: Person | None,
    channel: str,
    place: Place | None,
    stop: Stop | None,
    unknown: str = "",
    *,
    is_raw: bool = False,
) -> Row:
    whose = str(person.id) if person else f"?{unknown}"
    is_push = channel == Channel.PUSH
    known = place is not None and not is_raw
    return Row(
        id=delivery_id(outline.id, whose, channel, place.hash.hex if place else ""),
        outline=entry.outline,
        user_id=person.id if person else None,
        recipient_no=entry.number,
        channel=channel,
        platform=place.platform if place else "",
        address_id=place.id if place and known and not is_push else None,
        device_id=place.id if place and known and is_push else None,
        address_hash=place.hash if place else None,
        locale=_locale(outline, entry, person, place),
        stop=stop,
    )


def _locale(outline: Outline, entry: Entry, person: Person | None, place: Place | None) -> str:
    asked: str = entry.value.get("locale", "")
    own = (place.locale if place else "") or (person.locale if person else "")
    return asked or own or outline.default_locale


class People:
    """Everyone that some entries name or reach, with what the gates look at."""

    def __init__(self) -> None:
        self.by_external_id: dict[str, Person] = {}
        self.by_hash: dict[UUID, list[Person]] = {}
        self._suppressed: dict[tuple[UUID, str], list[tuple[int | None, str, str]]] = {}

    @classmethod
    def read(cls, outlines: Sequence[Outline], entries: Sequence[Entry]) -> People:
        found = cls()
        channels = {channel for outline in outlines for channel in outline.channels}
        with connection.cursor() as cursor:
            cursor.execute(
                _PEOPLE,
                {
                    "ids": texts(sorted({e.value["user_id"] for e in entries if "user_id" in e.value})),
                    "addresses": plain({e.value["hash"] for e in entries if "email" in e.value or "phone" in e.value}),
                    "devices": plain({e.value["hash"] for e in entries if "device" in e.value}),
                    "categories": plain({outline.category.pk for outline in outlines}),
                    "wants_push": Channel.PUSH in channels or any("device" in e.value for e in entries),
                    "wants_addresses": bool(channels - {Channel.PUSH}) or any("device" not in e.value for e in entries),
                },
            )
            for row in cursor.fetchall():
                found._add(row)
            hashes = {UUID(e.value["hash"]) for e in entries if "hash" in e.value} | set(found.by_hash)
            if hashes:
                cursor.execute(_SUPPRESSIONS, {"hashes": plain(hashes)})
                for hashed, channel, category_id, reason, since in cursor.fetchall():
                    found._suppressed.setdefault((hashed, channel), []).append((category_id, reason, since))
        return found

    def _add(self, row: tuple[Any, ...]) -> None:
        id, external_id, locale, is_opted_out, is_erased, addresses, devices, choices = row
        person = Person(id, external_id, locale, is_opted_out, is_erased)
        for channel, address_id, hashed, status, is_sandbox, is_primary in addresses or ():
            place = Place(UUID(address_id), UUID(hashed), status, is_sandbox, is_primary=is_primary)
            person.addresses.setdefault(channel, []).append(place)
            self.by_hash.setdefault(place.hash, []).append(person)
        for device_id, hashed, status, is_sandbox, platform, device_locale in devices or ():
            place = Place(UUID(device_id), UUID(hashed), status, is_sandbox, platform, locale=device_locale)
            person.devices.append(place)
            self.by_hash.setdefault(place.hash, []).append(person)
        for category_id, channel, is_on in choices or ():
            person.choices[category_id, channel] = is_on
        self.by_external_id[external_id] = person

    def suppression(self, channel: str, hashed: UUID | None, category_id: int) -> tuple[str, str]:
        """(reason, since) of what suppresses an address for a category; empty when nothing does."""
        for of_category, reason, since in self._suppressed.get((hashed, channel), ()) if hashed else ():
            if of_category in (None, category_id):
                return reason, since
        return "", ""


_PEOPLE = """
SELECT u.id, u.external_id, u.locale, u.is_opted_out, u.erased_at IS NOT NULL,
       CASE WHEN %(wants_addresses)s THEN (
         SELECT json_agg(json_build_array(a.channel, a.id, a.value_hash, a.status, a.is_sandbox, a.is_primary))
           FROM people_address a WHERE a.user_id = u.id) END,
       CASE WHEN %(wants_push)s THEN (
         SELECT json_agg(json_build_array(v.id, v.token_hash, v.status, v.is_sandbox, v.platform, v.locale))
           FROM people_device v WHERE v.user_id = u.id) END,
       (SELECT json_agg(json_build_array(f.category_id, f.channel, f.is_on))
          FROM people_preference f WHERE f.user_id = u.id AND f.category_id = ANY (%(categories)s::bigint[]))
  FROM people_user u
 WHERE u.id IN (
   SELECT x.id FROM people_user x WHERE x.external_id = ANY (%(ids)s::text[])
   UNION SELECT a.user_id FROM people_address a WHERE a.value_hash = ANY (%(addresses)s::uuid[])
   UNION SELECT v.user_id FROM people_device v WHERE v.token_hash = ANY (%(devices)s::uuid[]))
"""

_SUPPRESSIONS = """
SELECT address_hash, channel, category_id, reason, to_char(created_at, 'YYYY-MM-DD') FROM people_suppression
 WHERE address_hash = ANY (%(hashes)s::uuid[]) AND (expires_at IS NULL OR expires_at > now())
"""

_INSERT = """
WITH o AS MATERIALIZED (
  SELECT * FROM unnest(%(o_no)s::int[], %(o_id)s::uuid[], %(o_client)s::int[], %(o_mode)s::text[],
    %(o_category)s::bigint[], %(o_campaign)s::uuid[], %(o_version)s::int[], %(o_lane)s::text[],
    %(o_due)s::timestamptz[], %(o_expires)s::timestamptz[])
  AS o(no, id, client, mode, category, campaign, version, lane, due, expires)
), v AS MATERIALIZED (
  SELECT * FROM unnest(%(id)s::uuid[], %(outline)s::int[], %(user)s::bigint[], %(number)s::int[], %(channel)s::text[],
    %(platform)s::text[], %(address)s::uuid[], %(device)s::uuid[], %(hash)s::uuid[], %(locale)s::text[],
    %(state)s::text[], %(reason)s::text[], %(detail)s::text[], %(gate)s::text[], %(seen)s::jsonb[])
  AS v(id, outline, user_id, number, channel, platform, address, device, hash, locale, state, reason, detail, gate,
       seen)
), n AS (
  INSERT INTO notifications_delivery (
    id, notification_id, client_id, mode, category_id, campaign_id, user_id, recipient_no, channel, platform,
    address_id, device_id, address_hash, locale, lane, state, reason, detail, stopped_by, seen, claim_no, expires_at,
    ended_at)
  SELECT v.id, o.id, o.client, o.mode, o.category, o.campaign, v.user_id, v.number, v.channel, v.platform,
         v.address, v.device, v.hash, v.locale, o.lane, v.state, v.reason, v.detail, v.gate, v.seen, 0, o.expires,
         CASE WHEN v.state <> 'queued' THEN now() END
    FROM v JOIN o ON o.no = v.outline ORDER BY v.id
  ON CONFLICT (id) DO NOTHING
  RETURNING id, notification_id, channel, lane, client_id, state
), p AS (
  INSERT INTO notifications_pending (id, channel, lane, client_id, wake_at, due_at, waiting, claim_no, tries, crashes)
  SELECT n.id, n.channel, n.lane, n.client_id,
         greatest(coalesce(o.due, now()), now()) + %(wake_in)s * interval '1 second', coalesce(o.due, now()),
         CASE WHEN o.due > now() THEN 'scheduled' ELSE '' END, 0, 0, 0
    FROM n JOIN o ON o.id = n.notification_id WHERE n.state = 'queued'
), t AS (
  INSERT INTO notifications_tally (hour, client_id, mode, channel, lane, category_id, template_version_id,
                                   campaign_id, account_id, from_state, to_state, n)
  SELECT date_trunc('hour', now()), o.client, o.mode, n.channel, o.lane, o.category, o.version, o.campaign, NULL,
         '', n.state, count(*)
    FROM n JOIN o ON o.id = n.notification_id
   GROUP BY o.client, o.mode, n.channel, o.lane, o.category, o.version, o.campaign, n.state
)
SELECT id, channel FROM n WHERE state = 'queued'
"""


def insert(outlines: Sequence[Outline], rows: Sequence[Row], *, wake_in_s: float) -> list[tuple[UUID, str]]:
    """Write planned rows in one statement; returns the new ones that are to be sent."""
    with connection.cursor() as cursor:
        cursor.execute(_INSERT, {**_outline_values(outlines), **_row_values(rows), "wake_in": wake_in_s})
        return list(cursor.fetchall())


def _outline_values(outlines: Sequence[Outline]) -> dict[str, str]:
    return {
        "o_no": plain(range(len(outlines))),
        "o_id": plain(o.id for o in outlines),
        "o_client": plain(o.client_id for o in outlines),
        "o_mode": texts(o.mode for o in outlines),
        "o_category": plain(o.category.pk for o in outlines),
        "o_campaign": plain(o.campaign_id for o in outlines),
        "o_version": plain(o.template_version_id for o in outlines),
        "o_lane": texts(o.lane for o in outlines),
        "o_due": texts(o.due_at.isoformat() if o.due_at else None for o in outlines),
        "o_expires": texts(o.expires_at.isoformat() for o in outlines),
    }


def _row_values(rows: Sequence[Row]) -> dict[str, str]:
    return {
        "id": plain(r.id for r in rows),
        "outline": plain(r.outline for r in rows),
        "user": plain(r.user_id for r in rows),
        "number": plain(r.recipient_no for r in rows),
        "channel": texts(r.channel for r in rows),
        "platform": texts(r.platform for r in rows),
        "address": plain(r.address_id for r in rows),
        "device": plain(r.device_id for r in rows),
        "hash": plain(r.address_hash for r in rows),
        "locale": texts(r.locale for r in rows),
        "state": texts(r.stop.state if r.stop else State.QUEUED for r in rows),
        "reason": texts(r.stop.reason if r.stop else "" for r in rows),
        "detail": texts(r.stop.detail[:500] if r.stop else "" for r in rows),
        "gate": texts(r.stop.gate if r.stop else "" for r in rows),
        "seen": jsons(r.stop.seen if r.stop else None for r in rows),
    }
