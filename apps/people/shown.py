"""How people are shown to callers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apps.people.models import Address, Category, Device, Suppression, User
from apps.people.selectors import effective_preferences, places_of
from apps.rest.schema import (
    ANY_OBJECT,
    BOOLEAN,
    FIELD_ERRORS,
    INTEGER,
    OPTIONAL_TEXT,
    OPTIONAL_TIME,
    TEXT,
    TIME,
    UUID,
    answer,
    array,
)

ADDRESS_OUT = answer(
    id=UUID,
    channel=TEXT,
    value=TEXT,
    primary=BOOLEAN,
    verified=BOOLEAN,
    status=TEXT,
    reason=OPTIONAL_TEXT,
    created_at=TIME,
)
DEVICE_OUT = answer(
    id=UUID,
    user_id=TEXT,
    platform=TEXT,
    provider=TEXT,
    token=TEXT,
    token_hash=TEXT,
    app_id=OPTIONAL_TEXT,
    app_version=OPTIONAL_TEXT,
    locale=OPTIONAL_TEXT,
    status=TEXT,
    reason=OPTIONAL_TEXT,
    registered_at=TIME,
    last_seen_at=TIME,
)
USER_OUT = answer(
    id=TEXT,
    locale=OPTIONAL_TEXT,
    time_zone=OPTIONAL_TEXT,
    country=OPTIONAL_TEXT,
    attributes=ANY_OBJECT,
    addresses=array(ADDRESS_OUT),
    devices=array(DEVICE_OUT),
    created_at=TIME,
    updated_at=TIME,
)
BULK_RESULT_OUT = answer(index=INTEGER, result={"enum": ["created", "updated", "rejected"]}, id=OPTIONAL_TEXT)
BULK_RESULT_OUT["properties"] |= {"code": TEXT, "errors": FIELD_ERRORS}
BULK_OUT = answer(created=INTEGER, updated=INTEGER, rejected=INTEGER, results=array(BULK_RESULT_OUT))
CHOICE_OUT = answer(on=BOOLEAN, source={"enum": ["mandatory", "all", "user", "default"]})
PREFERENCES_OUT = answer(
    all=BOOLEAN,
    categories={
        "type": "object",
        "additionalProperties": {"type": "object", "additionalProperties": CHOICE_OUT},
    },
    quiet_hours={"type": ["object", "null"], "properties": {"from": TEXT, "to": TEXT, "time_zone": TEXT}},
)
SUPPRESSION_OUT = answer(
    id=UUID,
    channel=TEXT,
    address=OPTIONAL_TEXT,
    reason=TEXT,
    category=OPTIONAL_TEXT,
    note=OPTIONAL_TEXT,
    source=OPTIONAL_TEXT,
    expires_at=OPTIONAL_TIME,
    created_at=TIME,
)
CATEGORY_OUT = answer(
    key=TEXT,
    name=TEXT,
    description=OPTIONAL_TEXT,
    mandatory=BOOLEAN,
    marketing=BOOLEAN,
    on_by_default=BOOLEAN,
    channels=array(TEXT),
    lane=TEXT,
    expires_after_s={"type": ["integer", "null"]},
    on_uncertain=OPTIONAL_TEXT,
)


def show_users(users: Sequence[User]) -> list[dict[str, Any]]:
    """In the same order; two queries, however many they are."""
    addresses, devices = places_of(users)
    return [
        {
            "id": user.external_id,
            "locale": user.locale or None,
            "time_zone": user.time_zone or None,
            "country": user.country or None,
            "attributes": user.attributes,
            "addresses": [show_address(address) for address in addresses[user.pk]],
            "devices": [show_device(device, user.external_id) for device in devices[user.pk]],
            "created_at": user.created_at,
            "updated_at": user.updated_at,
        }
        for user in users
    ]


def show_address(address: Address) -> dict[str, Any]:
    return {
        "id": address.pk,
        "channel": address.channel,
        "value": address.value,
        "primary": address.is_primary,
        "verified": address.is_verified,
        "status": address.status,
        "reason": address.reason or None,
        "created_at": address.created_at,
    }


def show_device(device: Device, external_id: str) -> dict[str, Any]:
    """Without the token: whoever has it and our keys could push to the device."""
    return {
        "id": device.pk,
        "user_id": external_id,
        "platform": device.platform,
        "provider": device.provider,
        "token": f"...{device.token[-4:]}",
        "token_hash": device.token_hash.hex,
        "app_id": device.app_id or None,
        "app_version": device.app_version or None,
        "locale": device.locale or None,
        "status": device.status,
        "reason": device.reason or None,
        "registered_at": device.registered_at,
        "last_seen_at": device.last_seen_at,
    }


def show_preferences(user: User) -> dict[str, Any]:
    quiet_hours = None
    if user.quiet_from is not None and user.quiet_to is not None:
        quiet_hours = {
            "from": f"{user.quiet_from:%H:%M}",
            "to": f"{user.quiet_to:%H:%M}",
            "time_zone": user.time_zone or "UTC",
        }
    return {
        "all": not user.is_opted_out,
        "categories": {
            key: {channel: {"on": is_on, "source": source} for channel, (is_on, source) in by_channel.items()}
            for key, by_channel in effective_preferences(user).items()
        },
        "quiet_hours": quiet_hours,
    }


def show_suppression(entry: Suppression) -> dict[str, Any]:
    return {
        "id": entry.pk,
        "channel": entry.channel,
        "address": entry.address or None,
        "reason": entry.reason,
        "category": entry.category.key if entry.category else None,
        "note": entry.note or None,
        "source": entry.source or None,
        "expires_at": entry.expires_at,
        "created_at": entry.created_at,
    }


def show_category(category: Category) -> dict[str, Any]:
    return {
        "key": category.key,
        "name": category.name,
        "description": category.description or None,
        "mandatory": category.is_mandatory,
        "marketing": category.is_marketing,
        "on_by_default": category.is_on_by_default,
        "channels": category.channels,
        "lane": category.lane,
        "expires_after_s": category.expires_after_s,
        "on_uncertain": category.on_uncertain or None,
    }
