"""A person's email addresses and phone numbers beside the primary ones."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.utils import timezone

from apps.people.hashing import hash_address
from apps.people.models import Address, Change, Status, User
from apps.people.selectors import address_of, user_by_external_id
from apps.people.services.changes import ChangeKind, change
from apps.people.services.transactions import in_one_transaction
from apps.people.services.users import MAX_ADDRESSES, new_address
from apps.rest.catalogue import FieldCode
from apps.rest.problems import FieldError, invalid


@in_one_transaction
def add_address(
    external_id: str,
    *,
    channel: str,
    value: str,
    is_primary: bool | None = None,
    is_verified: bool | None = None,
    source: str = "api",
) -> tuple[Address, bool]:
    """Add an address in its normal form: (address, whether it is new). A known one is active again.

    The first of a channel is primary unless said otherwise. Raises Problem not-found, validation-failed.
    """
    user = user_by_external_id(external_id, for_update=True)
    known = list(Address.objects.filter(user=user, channel=channel))
    hashed = hash_address(channel, value)
    found = next((row for row in known if row.value_hash == hashed), None)
    if found is not None:
        _apply(found, is_primary=is_primary, is_verified=is_verified, is_reported=True, source=source)
        return found, False
    if len(known) >= MAX_ADDRESSES:
        raise invalid([FieldError("", FieldCode.TOO_MANY, f"at most {MAX_ADDRESSES} addresses per channel")])
    becomes_primary = not any(row.is_primary for row in known) if is_primary is None else is_primary
    if becomes_primary:
        _demote(user, channel)
    address = new_address(user, channel, value, is_primary=becomes_primary, is_verified=bool(is_verified))
    address.save(force_insert=True)
    change(ChangeKind.ADDRESS_ADDED, user_id=user.pk, subject=address.pk, source=source, channel=channel).save()
    return address, True


@in_one_transaction
def change_address(
    external_id: str,
    id: UUID,
    *,
    channel: str | None = None,
    value: str | None = None,
    is_primary: bool | None = None,
    is_verified: bool | None = None,
    source: str = "api",
) -> Address:
    """Change what is said of an address. Its channel and value never change: what is on its way goes by its id.

    Raises Problem not-found, validation-failed.
    """
    user = user_by_external_id(external_id, for_update=True)
    address = address_of(user, id)
    errors = []
    if channel not in (None, address.channel):
        errors.append(FieldError("/channel", FieldCode.CONFLICT, "cannot change: add the new address, delete this one"))
    elif value is not None and hash_address(address.channel, value) != address.value_hash:
        errors.append(FieldError("/value", FieldCode.CONFLICT, "cannot change: add the new address, delete this one"))
    if errors:
        raise invalid(errors)
    _apply(address, is_primary=is_primary, is_verified=is_verified, is_reported=False, source=source)
    return address


@in_one_transaction
def remove_address(external_id: str, id: UUID, *, source: str = "api") -> None:
    """Raises Problem not-found."""
    user = user_by_external_id(external_id, for_update=True)
    address = address_of(user, id)
    address.delete()
    change(ChangeKind.ADDRESS_REMOVED, user_id=user.pk, subject=id, source=source, channel=address.channel).save()


@in_one_transaction
def retire_address(id: UUID, reason: str, *, source: str = "provider") -> bool:
    """Nothing more goes to this address; whether it was active until now. An unknown id is no error."""
    retired = Address.objects.filter(pk=id, status=Status.ACTIVE).update(
        status=Status.RETIRED, reason=reason[:40], retired_at=timezone.now()
    )
    if not retired:
        return False
    user_id, channel = Address.objects.values_list("user_id", "channel").get(pk=id)
    change(
        ChangeKind.ADDRESS_RETIRED, user_id=user_id, subject=id, source=source, channel=channel, reason=reason
    ).save()
    return True


def _apply(
    address: Address, *, is_primary: bool | None, is_verified: bool | None, is_reported: bool, source: str
) -> None:
    """`is_reported`: the caller says that the person has this address now."""
    wanted: dict[str, Any] = {}
    if is_primary is not None:
        wanted["is_primary"] = is_primary
    if is_verified is not None:
        wanted["is_verified"] = is_verified
    if is_reported:
        wanted |= {"status": Status.ACTIVE.value, "reason": "", "retired_at": None}
    if all(getattr(address, name) == value for name, value in wanted.items()):
        return
    if is_primary and not address.is_primary:
        _demote(address.user, address.channel)
    for name, value in wanted.items():
        setattr(address, name, value)
    address.save(update_fields=[*wanted, "updated_at"])
    row: Change = change(
        ChangeKind.ADDRESS_CHANGED, user_id=address.user_id, subject=address.pk, source=source, channel=address.channel
    )
    row.save()


def _demote(user: User, channel: str) -> None:
    Address.objects.filter(user=user, channel=channel, is_primary=True).update(is_primary=False)
