"""Taking work: by the ids that were rung, and what else a lane holds; and the gates as they stand at that moment.

Lives on Pending alone for the taking (`FOR UPDATE SKIP LOCKED`, so that nobody waits), then reads the deliveries
with everything the gates look at: an opt-out that was committed before is always seen. Both are one call of a
function (sql/claim_2.sql, sql/take_2.sql), and so one transaction: a claim that is committed is known to its
worker, and no worker that falls silent holds a lock.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import msgspec
from django.db import connection

from apps.notifications.arrays import plain, texts
from notifier.ledger import Claimed, Stop
from notifier.lifecycle import State
from notifier.message import Address, Channel, Lane, Mode, Platform
from notifier.stages.gates import Facts, decide
from notifier.stages.settle import may_duplicate


def machine_time() -> float:
    """Seconds on a clock that also runs while the machine sleeps: a lease must not look longer after a freeze."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Taken(NamedTuple):
    """A Pending row as the claim left it."""

    id: UUID
    claim_no: int
    tries: int
    crashes: int
    queue_lane: str
    waiting: str


class Read(msgspec.Struct, array_like=True, frozen=True):
    """A delivery with all that the gates look at; in the order of the columns of sql/gates_2.sql."""

    id: UUID
    notification_id: UUID
    client_id: int
    mode: Mode
    category_id: int
    campaign_id: UUID | None
    user_id: int | None
    recipient_no: int
    channel: Channel
    address_id: UUID | None
    device_id: UUID | None
    locale: str
    lane: Lane
    state: State
    account_id: int | None
    expires_at: float
    is_expired: bool
    client_is_active: bool
    client_is_verified: bool
    category: str
    is_mandatory: bool
    is_on_by_default: bool
    on_uncertain: str
    user_exists: bool
    user_is_erased: bool
    is_opted_out: bool
    preference: bool | None
    suppressed_by: str | None
    suppressed_since: str | None
    address_value: str | None
    address_status: str | None
    address_user: int | None
    address_is_sandbox: bool | None
    token: str | None
    device_status: str | None
    device_user: int | None
    platform: Platform | None
    device_provider: str | None
    token_kind: str | None
    app_id: str | None
    apns_environment: str | None
    device_is_sandbox: bool | None


class Asked(msgspec.Struct, array_like=True, frozen=True):
    """What a notification says, for all its deliveries. Never changes once accepted."""

    id: UUID
    template_version_id: int | None
    recipients: list[dict[str, Any]]
    data: dict[str, Any]
    options: dict[str, Any]
    inline: dict[str, Any] | None


class Reading(msgspec.Struct, frozen=True):
    rows: list[Read]
    asked: list[Asked]
    holds: list[tuple[str, str, str, str]] | None


class Claim(msgspec.Struct, frozen=True):
    """The answer of sql/claim_2.sql and sql/take_2.sql."""

    taken: list[Taken]
    read: Reading | None = None
    is_all: bool = True


_claim = msgspec.json.Decoder(Claim)
_reading = msgspec.json.Decoder(Reading)


def claim(ids: Sequence[UUID], *, lease_s: float, alone: bool) -> list[Claimed]:
    """See `notifier.ledger.Ledger.claim`."""
    return _take("notifications_claim_2(%s, %s, %s)", [plain(ids), alone, lease_s], lease_s)[0]


def take(
    ids: Sequence[UUID], channel: str, lanes: Sequence[str], most: int, *, lease_s: float
) -> tuple[list[Claimed], bool]:
    """See `notifier.ledger.Ledger.take`."""
    values = [plain(ids), channel, texts(lanes), most, lease_s]
    return _take("notifications_take_2(%s, %s, %s, %s, %s)", values, lease_s)


def _take(function: str, values: Sequence[Any], lease_s: float) -> tuple[list[Claimed], bool]:
    at = machine_time()
    claim = _claim.decode(_ask(function, values))
    if claim.read is None:
        return [], claim.is_all
    taken = {row.id: row for row in claim.taken}
    return _join(taken, claim.read, claimed_at=at, lease_ends=at + lease_s), claim.is_all


def read_again(claimed: Sequence[Claimed]) -> list[Claimed]:
    """The same claims with the gates as they stand now (see `notifier.ledger.Ledger.recheck`)."""
    taken = {c.delivery_id: Taken(c.delivery_id, c.claim_no, c.tries, c.crashes, c.queue_lane, "") for c in claimed}
    at = machine_time()
    answer = _ask("notifications_gates_2(%s)", [plain(sorted(taken))])
    lease_ends = min(c.lease_ends for c in claimed)
    return _join(taken, _reading.decode(answer), claimed_at=at, lease_ends=lease_ends)


def _ask(function: str, values: Sequence[Any]) -> str:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {function}::text", values)
        answer: str = cursor.fetchone()[0]
        return answer


def loads(text: str | None) -> Any:
    """A jsonb column as Django's connection hands it to a plain cursor: as text."""
    return None if text is None else msgspec.json.decode(text)


Holds = Mapping[tuple[str, str], tuple[str, str]]


def by_subject(holds: Iterable[tuple[str, str, str, str]] | None) -> Holds:
    """(scope, subject) -> (action, reason) of everything paused or cancelled, but for accounts: route sees to those."""
    return {(scope, subject): (action, reason) for scope, subject, action, reason in holds or ()}


def _join(taken: Mapping[UUID, Taken], read: Reading, *, claimed_at: float, lease_ends: float) -> list[Claimed]:
    holds = by_subject(read.holds)
    asked = {each.id: each for each in read.asked}
    return [
        _claimed(taken[row.id], row, asked[row.notification_id], holds, claimed_at=claimed_at, lease_ends=lease_ends)
        for row in read.rows
    ]


def _claimed(taken: Taken, row: Read, asked: Asked, holds: Holds, *, claimed_at: float, lease_ends: float) -> Claimed:
    entry = asked.recipients[row.recipient_no] if asked.recipients else {}
    address = _address(row, entry)
    own_data = entry.get("data")
    return Claimed(
        delivery_id=taken.id,
        claim_no=taken.claim_no,
        notification_id=row.notification_id,
        client_id=row.client_id,
        mode=row.mode,
        channel=row.channel,
        lane=row.lane,
        queue_lane=taken.queue_lane,
        category_id=row.category_id,
        campaign_id=row.campaign_id,
        template_version_id=asked.template_version_id,
        state=row.state,
        tries=taken.tries,
        crashes=taken.crashes,
        expires_at=row.expires_at,
        lease_ends=lease_ends,
        claimed_at=claimed_at,
        may_duplicate=may_duplicate(row.lane, row.channel, row.on_uncertain),
        address=address,
        address_id=row.address_id,
        device_id=row.device_id,
        device_provider=row.device_provider or entry.get("device", {}).get("provider", ""),
        locale=row.locale,
        last_account_id=row.account_id,
        collapse_key=asked.options.get("collapse_key", ""),
        data=merged(asked.data, own_data) if own_data else asked.data,
        options=asked.options,
        inline=asked.inline,
        shares_data=not own_data,
        stop=_stop(taken, row, address, holds),
    )


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, objects merged at every depth."""
    out = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = merged(out[key], value)
        else:
            out[key] = value
    return out


def _address(row: Read, entry: dict[str, Any]) -> Address | None:
    if row.device_id is not None:
        if row.token is None:
            return None
        return Address(
            row.channel,
            row.token,
            platform=row.platform,
            token_kind=row.token_kind or "",
            app_id=row.app_id or "",
            apns_environment=row.apns_environment or "",
            is_sandbox=bool(row.device_is_sandbox),
        )
    if row.address_id is not None:
        if row.address_value is None:
            return None
        return Address(row.channel, row.address_value, is_sandbox=bool(row.address_is_sandbox))
    return raw_address(row.channel, entry)


def raw_address(channel: Channel, entry: Mapping[str, Any]) -> Address | None:
    """The address that the caller gave in `to` itself, as accept normalised it; None: gave none for this channel."""
    if channel is Channel.PUSH:
        device = entry.get("device")
        if not device:
            return None
        return Address(
            channel,
            device["token"],
            platform=Platform(device["platform"]),
            token_kind=device.get("token_kind", ""),
            app_id=device.get("app_id", ""),
            apns_environment=device.get("apns_environment", ""),
            is_sandbox=bool(entry.get("is_sandbox")),
        )
    value = entry.get("email" if channel is Channel.EMAIL else "phone")
    return Address(channel, value, is_sandbox=bool(entry.get("is_sandbox"))) if value else None


def _stop(taken: Taken, row: Read, address: Address | None, holds: Holds) -> Stop | None:
    scope, action, reason = held(holds, row)
    return decide(
        Facts(
            mode=row.mode,
            channel=row.channel,
            is_client_active=row.client_is_active,
            is_client_verified=row.client_is_verified,
            user_exists=row.user_exists if row.user_id is not None else None,
            is_user_erased=row.user_is_erased,
            is_sandbox_recipient=address is not None and address.is_sandbox,
            hold_scope=scope,
            hold_action=action,
            hold_reason=reason,
            is_expired=row.is_expired,
            was_tried=taken.tries > 0 or taken.crashes > 0,  # a worker that died may have sent it
            waiting=taken.waiting,
            category=row.category,
            is_mandatory=row.is_mandatory,
            is_on_by_default=row.is_on_by_default,
            is_opted_out=row.is_opted_out,
            preference=row.preference,
            suppressed_by=row.suppressed_by or "",
            suppressed_since=row.suppressed_since or "",
            target=_target(row, address),
        )
    )


def _target(row: Read, address: Address | None) -> str:
    if address is None:
        return "retired"
    if row.device_id is not None:
        status, owner = row.device_status, row.device_user
    elif row.address_id is not None:
        status, owner = row.address_status, row.address_user
    else:
        return "active"
    if owner != row.user_id:
        return "moved"
    return "active" if status == "active" else "retired"


class Holdable(Protocol):
    """What a hold can be over."""

    @property
    def channel(self) -> str: ...
    @property
    def client_id(self) -> int: ...
    @property
    def category_id(self) -> int: ...
    @property
    def campaign_id(self) -> UUID | None: ...
    @property
    def notification_id(self) -> UUID: ...


def held(holds: Holds, row: Holdable) -> tuple[str, str, str]:
    """(scope, action, reason) of the hold over a delivery, a cancel before a pause; empty when there is none."""
    found = ("", "", "")
    if not holds:
        return found
    for scope, subject in (
        ("channel", row.channel),
        ("client", row.client_id),
        ("category", row.category_id),
        ("campaign", row.campaign_id),
        ("notification", row.notification_id),
    ):
        action, reason = holds.get((scope, str(subject)), ("", ""))
        if action == "cancel":
            return scope, action, reason
        if action and not found[0]:
            found = (scope, action, reason)
    return found
