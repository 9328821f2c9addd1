"""Pages: newest first, by keyset; a page costs the same at the start and deep in a list of a million."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from django.core import signing
from django.db.models import Model, QuerySet

from apps.rest.problems import Problem
from apps.rest.validation import Field, Integer, Shape, Text

Row = TypeVar("Row", bound=Model)

DEFAULT_LIMIT = 50
MAX_LIMIT = 100
CURSOR_LIFE_S = 24 * 3600
_SALT = "cursor"


def page_query(**filters: Field) -> Shape:
    """The query of a list: its filters, and `limit` and `cursor`."""
    return Shape(
        {**filters, "limit": Integer(min=1, max=MAX_LIMIT, default=DEFAULT_LIMIT), "cursor": Text(min=1, max=500)}
    )


def page(
    rows: QuerySet[Row],
    query: dict[str, Any],
    *,
    scope: str,
    show: Callable[[list[Row]], list[dict[str, Any]]],
    key: str = "pk",
) -> dict[str, Any]:
    """One page of `rows` as `{"data", "next_cursor"}`.

    `scope` names the list and whoever may see it, e.g. "users" or "notifications/7/live": a cursor of one list is
    no cursor of another. `key` must be unique and grow with time. Raises Problem invalid-cursor.
    """
    bound_to = binding_of(scope, query)
    rows = rows.order_by(f"-{key}")
    if "cursor" in query:
        last = read_cursor(query["cursor"], bound_to)
        rows = rows.filter(**{f"{key}__lt": rows.model._meta.pk.to_python(last) if key == "pk" else last})
    found = list(rows[: query["limit"] + 1])
    following = None
    if len(found) > query["limit"]:
        found.pop()
        following = make_cursor(getattr(found[-1], key), bound_to)
    return {"data": show(found), "next_cursor": following}


def make_cursor(last: Any, binding: str) -> str:
    return signing.dumps([str(last), binding], salt=_SALT)


def read_cursor(cursor: str, binding: str) -> str:
    """The last key seen. Raises Problem invalid-cursor for a forged, foreign or old one."""
    try:
        last, bound_to = signing.loads(cursor, salt=_SALT, max_age=CURSOR_LIFE_S)
    except (signing.BadSignature, ValueError):
        raise Problem("invalid-cursor") from None
    if bound_to != binding:
        raise Problem("invalid-cursor", "the cursor belongs to other filters")
    return str(last)


def binding_of(scope: str, query: Mapping[str, Any]) -> str:
    """What ties a cursor to one list: `scope` as for `page`, and the filters of `query`."""
    filters = sorted((name, str(value)) for name, value in query.items() if name not in ("limit", "cursor"))
    return hashlib.blake2b(repr((scope, filters)).encode(), digest_size=9).hexdigest()
