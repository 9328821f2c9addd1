"""Addresses that get nothing, whoever they belong to."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.utils import timezone

from apps.people.hashing import hash_address
from apps.people.models import Category, Suppression, SuppressionReason
from apps.people.sandbox import is_sandbox_recipient
from apps.people.services.changes import ChangeKind, change
from apps.people.services.transactions import in_one_transaction
from apps.rest.problems import Problem
from notifier.ids import uuid7
from notifier.message import Channel

PROTECTED = frozenset({SuppressionReason.COMPLAINT, SuppressionReason.STOP})
"""The person said it themselves: only a person lifts it, or their START."""

# A stronger reason replaces a weaker one, never the other way: a note by hand must not make a complaint liftable.
_STRENGTH = {
    SuppressionReason.IMPORT: 0,
    SuppressionReason.MANUAL: 1,
    SuppressionReason.UNSUBSCRIBE: 2,
    SuppressionReason.BOUNCE: 3,
    SuppressionReason.STOP: 4,
    SuppressionReason.COMPLAINT: 5,
}


@in_one_transaction
def suppress(
    channel: Channel | str,
    address: str,
    reason: SuppressionReason | str,
    category: Category | None = None,
    *,
    source: str,
    note: str = "",
    expires_at: datetime | None = None,
    address_hash: UUID | None = None,
) -> tuple[Suppression, bool]:
    """Stop everything (or one category) to an address in its normal form: (entry, whether it is new).

    `address_hash` alone will do where the address itself is not kept any more (`address` is then empty).

    Where there is an entry, the stronger reason stays; an equal reason takes the newer note and end. Idempotent.
    """
    wanted = Suppression(
        id=uuid7(),
        channel=str(channel),
        address="" if channel == Channel.PUSH else address,  # tokens are no addresses to show
        address_hash=address_hash or hash_address(channel, address),
        reason=SuppressionReason(reason).value,
        category=category,
        is_sandbox=channel != Channel.PUSH and is_sandbox_recipient(channel, address),
        note=note[:500],
        source=source[:100],
        expires_at=expires_at,
    )
    stored = _stored(wanted)
    is_new = stored.pk == wanted.pk
    if not is_new and not _overrides(wanted, stored):
        return stored, False
    if not is_new:
        is_new = _has_ended(stored)
        for name in ("address", "reason", "note", "source", "expires_at", "is_sandbox"):
            setattr(stored, name, getattr(wanted, name))
        if is_new:
            stored.created_at = timezone.now()
        stored.save()
    change(
        ChangeKind.ADDRESS_SUPPRESSED,
        subject=stored.pk,
        source=source,
        channel=str(channel),
        reason=stored.reason,
        category=category.key if category else None,
        address_hash=stored.address_hash.hex,
    ).save()
    return stored, is_new


def _stored(wanted: Suppression) -> Suppression:
    """`wanted` itself, inserted, or the entry that holds its place; locked."""
    place = {"address_hash": wanted.address_hash, "channel": wanted.channel, "category": wanted.category}
    stored = None
    while stored is None:  # once, unless it is lifted between the two statements
        Suppression.objects.bulk_create([wanted], ignore_conflicts=True)
        stored = Suppression.objects.select_for_update().filter(**place).first()
    return stored


def _has_ended(entry: Suppression) -> bool:
    return entry.expires_at is not None and entry.expires_at <= timezone.now()


def _overrides(wanted: Suppression, stored: Suppression) -> bool:
    if _has_ended(stored):
        return True
    before, after = (_STRENGTH[SuppressionReason(row.reason)] for row in (stored, wanted))
    if after == before:
        return (wanted.note, wanted.expires_at) != (stored.note, stored.expires_at)
    return after > before


@in_one_transaction
def lift_suppression(id: UUID, *, source: str = "api", may_lift_protected: bool = False) -> None:
    """Let an address be written to again. Raises Problem not-found, suppression-protected.

    A sandbox recipient's entries are all liftable. `may_lift_protected`: a person decided, in the admin site.
    """
    entry = Suppression.objects.select_for_update(of=("self",)).select_related("category").filter(pk=id).first()
    if entry is None:
        raise Problem("not-found", "there is no such suppression")
    if entry.reason in PROTECTED and not entry.is_sandbox and not may_lift_protected:
        raise Problem("suppression-protected")
    entry.delete()
    change(
        ChangeKind.SUPPRESSION_LIFTED,
        subject=id,
        source=source,
        channel=entry.channel,
        reason=entry.reason,
        category=entry.category.key if entry.category else None,
        address_hash=entry.address_hash.hex,
    ).save()
