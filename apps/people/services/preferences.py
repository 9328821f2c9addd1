"""What a person allows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import time
from typing import Any

from apps.people.models import Category, Preference, User
from apps.people.selectors import user_by_external_id
from apps.people.services.changes import ChangeKind, change
from apps.people.services.transactions import in_one_transaction
from apps.rest.catalogue import FieldCode
from apps.rest.problems import invalid
from apps.rest.validation import Errors

QuietHours = tuple[time, time]

UNCHANGED = object()


@in_one_transaction
def set_preferences(
    external_id: str,
    *,
    everything: bool | None = None,
    choices: Mapping[str, Mapping[str, bool | None]] | None = None,
    quiet_hours: QuietHours | None | object = UNCHANGED,
    source: str = "api",
) -> User:
    """Merge a person's choices: by category key and channel True, False, or None for the category's default.

    `everything` False stops all but mandatory categories; None leaves it. `source`: where the choice was made.
    Effective before the next claim. Raises Problem not-found; validation-failed for an unknown category, a channel
    that the category does not use, and for switching a mandatory one off. Then nothing is changed.
    """
    user = user_by_external_id(external_id, for_update=True)
    wanted = _resolve(choices or {})
    told: dict[str, Any] = {}
    if everything is not None and user.is_opted_out is everything:
        user.is_opted_out = not everything
        told["all"] = everything
    if quiet_hours is not UNCHANGED:
        begin, end = quiet_hours if isinstance(quiet_hours, tuple) else (None, None)
        if (user.quiet_from, user.quiet_to) != (begin, end):
            user.quiet_from, user.quiet_to = begin, end
            told["quiet_hours"] = True
    if told:
        user.save(update_fields=["is_opted_out", "quiet_from", "quiet_to", "updated_at"])
    categories = _write(user, wanted, source)
    if categories:
        told["categories"] = categories
    if told:
        change(ChangeKind.PREFERENCES_CHANGED, user_id=user.pk, source=source, **told).save()
    return user


def _resolve(choices: Mapping[str, Mapping[str, bool | None]]) -> dict[tuple[int, str], tuple[str, bool | None]]:
    """By category id and channel: the category's key and the choice."""
    errors = Errors()
    known = {category.key: category for category in Category.objects.filter(key__in=list(choices))}
    wanted: dict[tuple[int, str], tuple[str, bool | None]] = {}
    for key, by_channel in choices.items():
        path = ((None, "categories"), key)
        category = known.get(key)
        if category is None:
            errors.add(path, FieldCode.NOT_FOUND, "there is no such category")
            continue
        for channel, is_on in by_channel.items():
            if channel not in category.channels:
                errors.add((path, channel), FieldCode.NOT_ALLOWED, f"{key} uses {', '.join(category.channels)} only")
            elif category.is_mandatory and is_on is False:
                errors.add((path, channel), FieldCode.NOT_ALLOWED, f"{key} is mandatory: it cannot be switched off")
            else:
                wanted[category.pk, channel] = key, is_on
    if errors:
        raise invalid(errors.items)
    return wanted


def _write(
    user: User, wanted: Mapping[tuple[int, str], tuple[str, bool | None]], source: str
) -> dict[str, dict[str, bool | None]]:
    """Store what differs; returns it by category key and channel."""
    if not wanted:
        return {}
    stored = {(row.category_id, row.channel): row for row in Preference.objects.filter(user=user)}
    told: dict[str, dict[str, bool | None]] = {}
    rows, gone = [], []
    for (category_id, channel), (key, is_on) in sorted(wanted.items()):
        before = stored.get((category_id, channel))
        if (before.is_on if before else None) is is_on:
            continue
        told.setdefault(key, {})[channel] = is_on
        if is_on is None and before is not None:
            gone.append(before.pk)
        elif is_on is not None:
            rows.append(
                Preference(user=user, category_id=category_id, channel=channel, is_on=is_on, source=source[:40])
            )
    Preference.objects.bulk_create(
        rows,
        update_conflicts=True,
        unique_fields=["user", "category", "channel"],
        update_fields=["is_on", "source", "updated_at"],
    )
    if gone:
        Preference.objects.filter(pk__in=gone).delete()
    return told
