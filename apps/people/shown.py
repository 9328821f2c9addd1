"""How people are shown to callers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apps.people.models import Address, Category, Device, Suppression, User
from apps.people.selectors import effective_preferences, places_of


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
