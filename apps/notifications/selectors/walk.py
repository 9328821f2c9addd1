"""How far a list looks: ids carry their time, so a window of time is a range of ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection

from apps.rest.pagination import binding_of, make_cursor, read_cursor
from apps.rest.problems import Problem
from notifier.ids import floor_id, range_of

LOOK_BACK = timedelta(days=7)
# Ids come from the clocks of the web processes; one that is ahead must not hide what it accepted.
CLOCKS_DIFFER_BY = timedelta(hours=1)
MOST_LOOKED_AT = 10_000  # rows that one page tests against its filters, at about 1 us each
MOST_NOTIFICATIONS = 2_000  # notifications that one page of deliveries walks through, at about 20 us each

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Owner(NamedTuple):
    """Whose rows: a client and a mode see nothing of another."""

    client_id: int
    mode: str


@dataclass(frozen=True, slots=True)
class Window:
    """A range of notification ids, both ends included; empty when `first` is above `last`."""

    first: UUID
    last: UUID

    @classmethod
    def of(cls, query: Mapping[str, Any], *, looks_back: bool = True) -> Window:
        """From `from` (included) to `to` (excluded), to the millisecond. Without `from`: seven days back, or, where
        an id names what is looked for, as far back as anything is kept."""
        now = datetime.now(UTC)
        since = query.get("from") or (now - LOOK_BACK if looks_back else _EPOCH)
        until = query.get("to") or now + CLOCKS_DIFFER_BY
        return cls(floor_id(max(since, _EPOCH)), _before(floor_id(max(until, _EPOCH))))

    def before(self, id: UUID) -> Window:
        return Window(self.first, min(self.last, _before(id)))

    def up_to(self, id: UUID) -> Window:
        return Window(self.first, min(self.last, id))

    def only(self, id: UUID) -> Window:
        return Window(max(self.first, id), min(self.last, id))

    @property
    def deliveries(self) -> tuple[UUID, UUID]:
        """The bounds of the ids derived from the notifications in it."""
        return range_of(self.first)[0], range_of(self.last)[1]


def _before(id: UUID) -> UUID:
    return UUID(int=max(0, id.int - 1))


class Cursor:
    """The place in one list that a page ends at. It belongs to the list's owner and filters."""

    def __init__(self, name: str, owner: Owner, query: Mapping[str, Any]) -> None:
        self._binding = binding_of(f"{name}/{owner.client_id}/{owner.mode}", query)
        self._given = query.get("cursor")

    def read(self) -> list[UUID] | None:
        """The keys of the last row seen; None at the start. Raises Problem invalid-cursor."""
        if self._given is None:
            return None
        try:
            return [UUID(part) for part in read_cursor(self._given, self._binding).split("/")]
        except ValueError:
            raise Problem("invalid-cursor") from None

    def make(self, *keys: UUID) -> str:
        return make_cursor("/".join(map(str, keys)), self._binding)


def fetch(statement: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
