"""How figures and times are written on the screens."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django import template

from notifier.ids import time_of

register = template.Library()


@register.filter
def thousands(number: int) -> str:
    """1234567 -> 1,234,567"""
    return f"{number:,}"


@register.filter
def took(attempt: Mapping[str, Any]) -> str:
    """From the start of a call to its end; nothing where one of them is not known."""
    if attempt["started_at"] is None or attempt["ended_at"] is None:
        return ""
    return f"{(attempt['ended_at'] - attempt['started_at']) / timedelta(milliseconds=1):,.0f} ms"


@register.filter
def time_of_id(id: UUID) -> datetime:
    return time_of(id)
