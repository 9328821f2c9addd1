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

import msgspec
from django.db import connection

from apps.notifications.arrays import plain, texts
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

    One read and one write, whatever the number of entries. `wake_in_s`: the relay leaves them alone so long,
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
                "SELECT notifications_people_2(%(ids)s, %(addresses)s, %(devices)s, %(categories)s, "
                "%(wants_addresses)s, %(wants_push)s)::text",
                {
                    "ids": texts(sorted({e.value["user_id"] for e in entries if "user_id" in e.value})),
                    "addresses": plain({e.value["hash"] for e in entries if "email" in e.value or "phone" in e.value}),
                    "devices": plain({e.value["hash"] for e in entries if "device" in e.value}),
                    "categories": plain({outline.category.pk for outline in outlines}),
                    "wants_push": Channel.PUSH in channels or any("device" in e.value for e in entries),
                    "wants_addresses": bool(channels - {Channel.PUSH}) or any("device" not in e.value for e in entries),
                },
            )
            answer = _found.decode(cursor.fetchone()[0])
        for row in answer.people:
            found._add(*row)
        for hashed, channel, category_id, reason, since in answer.suppressed:
            found._suppressed.setdefault((hashed, channel), []).append((category_id, reason, since))
        return found

    def _add(
        self,
        id: int,
        external_id: str,
        locale: str,
        is_opted_out: bool,
        is_erased: bool,
        addresses: Sequence[tuple[str, UUID, UUID, str, bool, bool]] | None,
        devices: Sequence[tuple[UUID, UUID, str, bool, str, str]] | None,
        choices: Sequence[tuple[int, str, bool]] | None,
    ) -> None:
        person = Person(id, external_id, locale, is_opted_out, is_erased)
        for channel, address_id, hashed, status, is_sandbox, is_primary in addresses or ():
            place = Place(address_id, hashed, status, is_sandbox, is_primary=is_primary)
            person.addresses.setdefault(channel, []).append(place)
            self.by_hash.setdefault(place.hash, []).append(person)
        for device_id, hashed, status, is_sandbox, platform, device_locale in devices or ():
            place = Place(device_id, hashed, status, is_sandbox, platform, locale=device_locale)
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


class _Found(msgspec.Struct, frozen=True):
    """The answer of sql/people_2.sql."""

    people: list[
        tuple[
            int,
            str,
            str,
            bool,
            bool,
            list[tuple[str, UUID, UUID, str, bool, bool]] | None,
            list[tuple[UUID, UUID, str, bool, str, str]] | None,
            list[tuple[int, str, bool]] | None,
        ]
    ]
    suppressed: list[tuple[UUID, str, int | None, str, str]]


_found = msgspec.json.Decoder(_Found)


def insert(outlines: Sequence[Outline], rows: Sequence[Row], *, wake_in_s: float) -> list[tuple[UUID, str]]:
    """Write planned rows in one statement; returns the new ones that are to be sent."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT notifications_lay_out_1(%s)", [encoded(document(outlines, rows, wake_in_s=wake_in_s))])
        return queued(cursor.fetchone()[0])


def document(outlines: Sequence[Outline], rows: Sequence[Row], *, wake_in_s: float) -> dict[str, Any]:
    """What sql/lay_out_1.sql reads."""
    return {
        "wake_in": wake_in_s,
        "outlines": [
            {
                "no": number,
                "id": o.id,
                "client": o.client_id,
                "mode": o.mode,
                "category": o.category.pk,
                "campaign": o.campaign_id,
                "version": o.template_version_id,
                "lane": o.lane,
                "due": o.due_at,
                "expires": o.expires_at,
            }
            for number, o in enumerate(outlines)
        ],
        "rows": [
            {
                "id": r.id,
                "outline": r.outline,
                "user_id": r.user_id,
                "number": r.recipient_no,
                "channel": r.channel,
                "platform": r.platform,
                "address": r.address_id,
                "device": r.device_id,
                "hash": r.address_hash,
                "locale": r.locale,
                "state": r.stop.state if r.stop else State.QUEUED,
                "reason": r.stop.reason if r.stop else "",
                "detail": r.stop.detail[:500] if r.stop else "",
                "gate": r.stop.gate if r.stop else "",
                "seen": r.stop.seen if r.stop else None,
            }
            for r in rows
        ],
    }


def encoded(document: Any) -> str:
    return msgspec.json.encode(document).decode()


_queued = msgspec.json.Decoder(list[tuple[UUID, str]])


def queued(answer: str) -> list[tuple[UUID, str]]:
    """(id, channel) of the deliveries to be sent, from the answer of sql/lay_out_1.sql."""
    return _queued.decode(answer)
