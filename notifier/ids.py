"""Ids that carry their time: UUIDv7, and the ids derived from them so that doing work twice makes no second row."""

from __future__ import annotations

import hashlib
import os
import time
from datetime import UTC, datetime
from uuid import UUID

_LOW_64 = (1 << 64) - 1
_VARIANT = 0b10 << 62


def uuid7(at_ms: int | None = None) -> UUID:
    """A new UUIDv7 (RFC 9562 5.7): 48 bits of Unix milliseconds, the rest random."""
    ms = time.time_ns() // 1_000_000 if at_ms is None else at_ms
    rand = int.from_bytes(os.urandom(10), "big")
    return UUID(int=ms << 80 | 0x7 << 76 | (rand >> 68 & 0xFFF) << 64 | _VARIANT | (rand & ((1 << 62) - 1)))


def time_of(id: UUID) -> datetime:
    """When a UUIDv7 was made, to the millisecond, UTC."""
    return datetime.fromtimestamp((id.int >> 80) / 1000, UTC)


def floor_id(at: datetime) -> UUID:
    """The smallest id of that millisecond: a partition's bound, and the start of a time range."""
    return UUID(int=int(at.timestamp() * 1000) << 80)


def delivery_id(notification: UUID, *parts: str) -> UUID:
    """The id of one delivery of a notification: its first 8 bytes and 62 bits of a hash of `parts`.

    `parts` are user, channel and address. The same work laid out twice gives the same id, and all deliveries
    of a notification lie in one short range of the primary key. One collision in a campaign of a million is
    a chance of 1.1e-7; the layout compares what is stored when a row is already there.
    """
    digest = hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8, key=notification.bytes).digest()
    return UUID(int=(notification.int >> 64) << 64 | _VARIANT | int.from_bytes(digest, "big") >> 2)


def derived_id(base: UUID, *parts: str) -> UUID:
    """The id of something that belongs to `base` (an attempt, an event): same first 8 bytes, so same partition."""
    return delivery_id(base, *parts)


def range_of(notification: UUID) -> tuple[UUID, UUID]:
    """The bounds, both included, of the ids derived from `notification`.

    Always together with `AND notification_id = ...`: one in 4,096 notifications of one millisecond shares it.
    """
    first = notification.int & ~_LOW_64
    return UUID(int=first), UUID(int=first | _LOW_64)
