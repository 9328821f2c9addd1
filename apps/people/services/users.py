"""Creating and updating people, one or a thousand at a time, in the same number of statements."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from django.db import connection
from django.utils import timezone

from apps.people.hashing import hash_address
from apps.people.models import Address, Change, Status, User
from apps.people.sandbox import is_sandbox_recipient
from apps.people.services.changes import ChangeKind, change
from apps.people.services.transactions import in_one_transaction
from apps.rest.catalogue import FieldCode
from apps.rest.problems import FieldError, invalid
from notifier.ids import uuid7
from notifier.message import Channel

MAX_ATTRIBUTES_BYTES = 16 * 1024
MAX_ADDRESSES = 10  # per channel
PRIMARY = {"email": Channel.EMAIL.value, "phone": Channel.SMS.value}
_TEXTS = ("locale", "time_zone", "country")

_INSERT = """
INSERT INTO people_user (external_id, locale, time_zone, country, attributes, is_opted_out, created_at, updated_at)
SELECT id, '', '', '', '{}', false, now(), now() FROM unnest(%s::text[]) AS id
ON CONFLICT (external_id) DO NOTHING RETURNING external_id
"""
_UPDATE = """
UPDATE people_user u
   SET locale = v.locale, time_zone = v.time_zone, country = v.country, attributes = v.attributes, erased_at = NULL,
       updated_at = %s
  FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::text[], %s::jsonb[])
       AS v(id, locale, time_zone, country, attributes)
 WHERE u.id = v.id
"""


@dataclass(slots=True)
class PutResult:
    """What became of one person. With `error` nothing was changed; only a person who was there can be refused."""

    user: User
    is_new: bool
    error: FieldError | None = None


@dataclass(slots=True)
class _Work:
    """What one call is going to write."""

    changed: list[User] = field(default_factory=list)
    dropped: list[Address] = field(default_factory=list)
    promoted: list[Address] = field(default_factory=list)
    added: list[Address] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)


def put_user(external_id: str, values: Mapping[str, Any], *, source: str = "api") -> PutResult:
    """Create or update one person; see `put_users`. Raises Problem validation-failed."""
    [result] = put_users([(external_id, values)], source=source)
    if result.error:
        raise invalid([result.error])
    return result


@in_one_transaction
def put_users(patches: Sequence[tuple[str, Mapping[str, Any]]], *, source: str = "api") -> list[PutResult]:
    """Create or update people, each id once, in a fixed number of statements; results in the same order.

    Merges: what a patch does not name is unchanged, None clears it. `attributes` merge the same way, key by key.
    `email` and `phone` set the primary address: the one before goes, so that what is on its way there is stopped.
    An erased person who is put again starts anew.
    """
    users, new = _lock_or_create([external_id for external_id, _ in patches])
    wanting = [users[id].pk for id, values in patches if PRIMARY.keys() & values.keys()]
    addresses: dict[tuple[int, str], list[Address]] = {}
    if wanting:
        for address in Address.objects.filter(user_id__in=wanting).order_by("id"):
            addresses.setdefault((address.user_id, address.channel), []).append(address)
    work = _Work()
    results = []
    for external_id, values in patches:
        user, is_new = users[external_id], external_id in new
        error = _refusal(user, values, addresses)
        if error is None:
            _merge(user, is_new, values, addresses, work, source)
        results.append(PutResult(user, is_new, error))
    _write(work)
    return results


def _lock_or_create(external_ids: Iterable[str]) -> tuple[dict[str, User], set[str]]:
    """All of them locked, in one order; and the ids of those that were made, or had been erased."""
    wanted = sorted(external_ids)
    rows = User.objects.select_for_update(no_key=True).order_by("external_id")
    users = {user.external_id: user for user in rows.filter(external_id__in=wanted)}
    new = {user.external_id for user in users.values() if user.erased_at is not None}
    missing = [id for id in wanted if id not in users]
    if missing:
        with connection.cursor() as cursor:
            cursor.execute(_INSERT, [missing])
            new |= {id for (id,) in cursor.fetchall()}
        users |= {user.external_id: user for user in rows.filter(external_id__in=missing)}
    return users, new


def _refusal(
    user: User, values: Mapping[str, Any], addresses: Mapping[tuple[int, str], list[Address]]
) -> FieldError | None:
    if values.get("attributes"):
        size = len(msgspec.json.encode(_merged(user.attributes, values["attributes"])))
        if size > MAX_ATTRIBUTES_BYTES:
            return FieldError(
                "/attributes", FieldCode.TOO_LONG, f"at most {MAX_ATTRIBUTES_BYTES} bytes of JSON, these have {size}"
            )
    for name, channel in PRIMARY.items():
        known = addresses.get((user.pk, channel), [])
        if values.get(name) is not None and len(known) >= MAX_ADDRESSES:
            hashed = hash_address(channel, values[name])
            if not any(row.is_primary or row.value_hash == hashed for row in known):
                return FieldError(f"/{name}", FieldCode.TOO_MANY, f"at most {MAX_ADDRESSES} addresses per channel")
    return None


def _merge(
    user: User,
    is_new: bool,
    values: Mapping[str, Any],
    addresses: Mapping[tuple[int, str], list[Address]],
    work: _Work,
    source: str,
) -> None:
    before = _values_of(user)
    for name in _TEXTS:
        if name in values:
            setattr(user, name, values[name] or "")
    if "attributes" in values:
        given = values["attributes"]
        user.attributes = {} if given is None else _merged(user.attributes, given)
    is_changed = is_new or before != _values_of(user)
    for name, channel in PRIMARY.items():
        if name in values:
            known = addresses.get((user.pk, channel), [])
            is_changed |= _set_primary(user, channel, values[name], known, work, source)
    if is_changed:
        user.erased_at, user.updated_at = None, timezone.now()
        work.changed.append(user)
        kind = ChangeKind.USER_CREATED if is_new else ChangeKind.USER_UPDATED
        work.changes.append(change(kind, user_id=user.pk, source=source))


def _values_of(user: User) -> tuple[Any, ...]:
    return user.locale, user.time_zone, user.country, user.attributes


def _merged(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**before, **given}.items() if value is not None}


def _set_primary(user: User, channel: str, value: str | None, known: list[Address], work: _Work, source: str) -> bool:
    """Plan what makes `value` the primary address (None: there is none); whether anything changes."""
    hashed = hash_address(channel, value) if value is not None else None
    primary = next((row for row in known if row.is_primary), None)
    if primary is not None and primary.value_hash == hashed:
        return False
    wanted = next((row for row in known if row.value_hash == hashed), None)
    if primary is not None:
        work.dropped.append(primary)
        work.changes.append(_address_change(ChangeKind.ADDRESS_REMOVED, primary, source))
    if wanted is not None:
        work.promoted.append(wanted)
        work.changes.append(_address_change(ChangeKind.ADDRESS_CHANGED, wanted, source))
    elif value is not None and hashed is not None:
        added = new_address(user, channel, value, is_primary=True)
        work.added.append(added)
        work.changes.append(_address_change(ChangeKind.ADDRESS_ADDED, added, source))
    return primary is not None or value is not None


def new_address(user: User, channel: str, value: str, *, is_primary: bool, is_verified: bool = False) -> Address:
    """A row that is not saved yet; `value` in its normal form."""
    return Address(
        id=uuid7(),
        user=user,
        channel=channel,
        value=value,
        value_hash=hash_address(channel, value),
        is_primary=is_primary,
        is_verified=is_verified,
        is_sandbox=is_sandbox_recipient(channel, value),
    )


def _address_change(kind: ChangeKind, address: Address, source: str) -> Change:
    return change(kind, user_id=address.user_id, subject=address.pk, source=source, channel=address.channel)


def _write(work: _Work) -> None:
    if work.changed:
        with connection.cursor() as cursor:
            cursor.execute(_UPDATE, [work.changed[0].updated_at, *_columns(work.changed)])
    if work.dropped:
        Address.objects.filter(pk__in=[row.pk for row in work.dropped]).delete()
    if work.promoted:
        # A deliberate change back to an address that had been retired takes it into use again.
        Address.objects.filter(pk__in=[row.pk for row in work.promoted]).update(
            is_primary=True, status=Status.ACTIVE, reason="", retired_at=None, updated_at=timezone.now()
        )
    Address.objects.bulk_create(work.added)
    Change.objects.bulk_create(work.changes)


def _columns(users: Sequence[User]) -> list[list[Any]]:
    return [
        [user.pk for user in users],
        [user.locale for user in users],
        [user.time_zone for user in users],
        [user.country for user in users],
        [json.dumps(user.attributes) for user in users],
    ]
