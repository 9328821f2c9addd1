"""Devices: registered by apps, moved with their owner, retired when a provider says that they are gone."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Q
from django.utils import timezone

from apps.people.hashing import hash_token
from apps.people.models import Change, Device, Status, User
from apps.people.sandbox import is_sandbox_recipient
from apps.people.selectors import device_of, user_by_external_id
from apps.people.services.changes import ChangeKind, change
from apps.people.services.transactions import in_one_transaction
from apps.rest.problems import Problem
from notifier.ids import uuid7
from notifier.message import Channel

MAX_ACTIVE = 50
TOO_MANY_DEVICES = "too_many_devices"  # the reason of those that a newer one pushed out

_HINTS = ("token_kind", "app_id", "apns_environment", "app_version", "locale")


@in_one_transaction
def register_device(external_id: str, values: Mapping[str, Any], *, source: str = "api") -> tuple[Device, bool]:
    """Note that an app on a person's device reported its token: (device, whether the token is new).

    `values`: parsed by `apps.people.devices.DEVICE`. A token that another person had is theirs from now on: who
    holds the phone decides. A retired one is active again. Beyond 50 active ones the person's oldest are retired.
    Raises Problem not-found.
    """
    user = user_by_external_id(external_id, for_update=True)
    hashed = hash_token(values["platform"], values["token"])
    device = _locked(hashed)
    is_new = device is None
    if device is None:
        device = Device(id=uuid7(), user=user, token_hash=hashed)
        _fill(device, user, values)
        Device.objects.bulk_create([device], ignore_conflicts=True)
        stored = _locked(hashed)
        if stored is None:
            raise Problem("unavailable", retry_after_s=1)  # made and removed by others in this very moment
        is_new, device = stored.pk == device.pk, stored
    changes = _take_over(device, user, values, is_new=is_new, source=source)
    changes += _retire_beyond_limit(user, device, source)
    Change.objects.bulk_create(changes)
    return device, is_new


def _locked(token_hash: UUID) -> Device | None:
    return Device.objects.select_for_update(no_key=True).filter(token_hash=token_hash).first()


def _fill(device: Device, user: User, values: Mapping[str, Any]) -> None:
    now = timezone.now()
    device.user = user
    device.platform, device.provider, device.token = values["platform"], values["provider"], values["token"]
    for name in _HINTS:
        setattr(device, name, values.get(name) or "")
    device.is_sandbox = is_sandbox_recipient(Channel.PUSH, device.token, device.platform)
    device.status, device.reason, device.retired_at = Status.ACTIVE.value, "", None
    # The app is alive now, so a provider's word that it was gone before counts no more.
    device.registered_at = device.last_seen_at = now


def _take_over(device: Device, user: User, values: Mapping[str, Any], *, is_new: bool, source: str) -> list[Change]:
    if is_new:
        return [change(ChangeKind.DEVICE_REGISTERED, user_id=user.pk, subject=device.pk, source=source)]
    owner_before, status_before = device.user_id, device.status
    _fill(device, user, values)
    device.save()
    if owner_before != user.pk:
        kind = ChangeKind.DEVICE_MOVED
        return [change(kind, user_id=user.pk, subject=device.pk, source=source, from_user=owner_before)]
    if status_before != Status.ACTIVE:
        return [change(ChangeKind.DEVICE_REGISTERED, user_id=user.pk, subject=device.pk, source=source)]
    return []  # an app that says hello at each start is no news


def _retire_beyond_limit(user: User, newest: Device, source: str) -> list[Change]:
    active = Device.objects.filter(user=user, status=Status.ACTIVE).exclude(pk=newest.pk)
    oldest = list(active.order_by("-registered_at", "-id").values_list("pk", flat=True)[MAX_ACTIVE - 1 :])
    if not oldest:
        return []
    Device.objects.filter(pk__in=oldest).update(
        status=Status.RETIRED, reason=TOO_MANY_DEVICES, retired_at=timezone.now()
    )
    return [
        change(ChangeKind.DEVICE_RETIRED, user_id=user.pk, subject=id, source=source, reason=TOO_MANY_DEVICES)
        for id in oldest
    ]


@in_one_transaction
def remove_device(external_id: str, id: UUID, *, source: str = "api") -> None:
    """Raises Problem not-found."""
    user = user_by_external_id(external_id, for_update=True)
    device_of(user, id).delete()
    change(ChangeKind.DEVICE_REMOVED, user_id=user.pk, subject=id, source=source).save()


@in_one_transaction
def retire_device(id: UUID, reason: str, gone_since: datetime | None = None, *, source: str = "provider") -> bool:
    """Nothing more goes to this device until it registers again; whether it was active until now.

    `gone_since`: since when the provider misses it. A device that registered later is back, and stays.
    An unknown id is no error.
    """
    still_gone = Q() if gone_since is None else Q(registered_at__lte=gone_since)
    retired = Device.objects.filter(still_gone, pk=id, status=Status.ACTIVE).update(
        status=Status.RETIRED, reason=reason[:40], retired_at=timezone.now()
    )
    if not retired:
        return False
    user_id = Device.objects.values_list("user_id", flat=True).get(pk=id)
    change(ChangeKind.DEVICE_RETIRED, user_id=user_id, subject=id, source=source, reason=reason).save()
    return True
