"""What is read about people."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from apps.people.models import Address, Category, Device, Preference, User
from apps.rest.problems import Problem


def user_by_external_id(external_id: str, *, for_update: bool = False) -> User:
    """Raises Problem not-found, for an erased person too."""
    rows = User.objects.filter(external_id=external_id, erased_at=None)
    if for_update:
        rows = rows.select_for_update(no_key=True)  # rows that point at it may still be added
    user = rows.first()
    if user is None:
        raise Problem("not-found", "there is no such user")
    return user


def places_of(users: Sequence[User]) -> tuple[dict[int, list[Address]], dict[int, list[Device]]]:
    """Their addresses (primary ones first) and devices (newest first) by user id, in two queries."""
    ids = [user.pk for user in users]
    addresses: dict[int, list[Address]] = {id: [] for id in ids}
    devices: dict[int, list[Device]] = {id: [] for id in ids}
    for address in Address.objects.filter(user_id__in=ids).order_by("channel", "-is_primary", "id"):
        addresses[address.user_id].append(address)
    for device in Device.objects.filter(user_id__in=ids).order_by("-id"):
        devices[device.user_id].append(device)
    return addresses, devices


def device_of(user: User, id: UUID) -> Device:
    """Raises Problem not-found, also for another person's device."""
    device = Device.objects.filter(user=user, pk=id).first()
    if device is None:
        raise Problem("not-found", "the user has no such device")
    return device


def address_of(user: User, id: UUID) -> Address:
    """Raises Problem not-found, also for another person's address."""
    address = Address.objects.filter(user=user, pk=id).first()
    if address is None:
        raise Problem("not-found", "the user has no such address")
    return address


def effective_preferences(user: User) -> dict[str, dict[str, tuple[bool, str]]]:
    """By category key and channel: whether it reaches the person, and what decided that.

    The sources, strongest first: `mandatory`, `all` (everything is off), `user` (they chose), `default`.
    """
    chosen = {(row.category_id, row.channel): row.is_on for row in Preference.objects.filter(user=user)}
    matrix: dict[str, dict[str, tuple[bool, str]]] = {}
    for category in Category.objects.all():
        matrix[category.key] = {
            channel: _effective(category, user, chosen.get((category.pk, channel))) for channel in category.channels
        }
    return matrix


def _effective(category: Category, user: User, chosen: bool | None) -> tuple[bool, str]:
    if category.is_mandatory:
        return True, "mandatory"
    if user.is_opted_out:
        return False, "all"
    if chosen is not None:
        return chosen, "user"
    return category.is_on_by_default, "default"
