"""How this room tells the rooms above what happened."""

from __future__ import annotations

from enum import StrEnum
from typing import Any
from uuid import UUID

from apps.people.models import Change


class ChangeKind(StrEnum):
    USER_CREATED = "user.created"
    USER_UPDATED = "user.updated"
    PREFERENCES_CHANGED = "user.preferences_changed"
    DEVICE_REGISTERED = "device.registered"
    DEVICE_MOVED = "device.moved"
    DEVICE_RETIRED = "device.retired"
    DEVICE_REMOVED = "device.removed"
    ADDRESS_ADDED = "address.added"
    ADDRESS_CHANGED = "address.changed"
    ADDRESS_RETIRED = "address.retired"
    ADDRESS_REMOVED = "address.removed"
    ADDRESS_SUPPRESSED = "address.suppressed"
    SUPPRESSION_LIFTED = "suppression.lifted"


def change(
    kind: ChangeKind, *, user_id: int | None = None, subject: UUID | str = "", source: str = "", **data: Any
) -> Change:
    """A row that is not saved yet. `data` is read by others and kept for long: no address, no token."""
    return Change(kind=kind.value, user_id=user_id, subject=str(subject), source=source[:100], data=data)
