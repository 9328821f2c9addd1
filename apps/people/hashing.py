"""Keyed hashes of addresses and device tokens: found again without being kept, and of no use to a thief."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from uuid import UUID

from django.conf import settings

from notifier.message import Channel, Platform


def hash_address(channel: Channel | str, value: str) -> UUID:
    """Of an address in its normal form. An email address counts without regard to case: mailboxes do too."""
    if channel == Channel.PUSH:
        return hash_token(Platform.WEB if value.startswith("{") else Platform.ANDROID, value)
    return _hash(str(channel), value.lower() if channel == Channel.EMAIL else value)


def hash_token(platform: Platform | str, token: str) -> UUID:
    """Of a device token in its normal form. A browser's subscription is its endpoint; its keys may be renewed."""
    return _hash(Channel.PUSH.value, json.loads(token)["endpoint"] if platform == Platform.WEB else token)


def _hash(channel: str, value: str) -> UUID:
    digest = hashlib.blake2b(f"{channel}\0{value}".encode(), digest_size=16, key=_key(settings.ADDRESS_HASH_KEY))
    return UUID(bytes=digest.digest())


@cache
def _key(secret: str) -> bytes:
    return hashlib.blake2b(secret.encode(), person=b"address-hash").digest()
