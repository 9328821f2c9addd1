"""What was accepted: the inbox that people and tests read, and the complete list of delivery ids and times."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

_LINES_IN_CHUNK = 10_000
_CHUNKS = 500  # five million lines of about 60 bytes: more than any run here makes, and bounded


@dataclass(slots=True)
class Entry:
    """One recipient of one accepted message.

    `body` is what came over the wire, untouched, and None once it had to go to make room.
    `part`: which recipient of the body this is (position of its personalization, envelope).
    """

    id: int
    at: float
    provider: str
    channel: str
    to: str
    delivery_id: str | None
    headers: tuple[tuple[str, str], ...]
    body: bytes | None
    part: int
    weight: int


@dataclass(frozen=True, slots=True)
class Filter:
    """What a reader asks for; empty means any."""

    channel: str = ""
    provider: str = ""
    to: str = ""
    delivery_id: str = ""
    after: int = 0

    def takes(self, entry: Entry) -> bool:
        return (
            (not self.to or entry.to == self.to)
            and (not self.provider or entry.provider == self.provider)
            and (not self.channel or entry.channel == self.channel)
            and (not self.delivery_id or entry.delivery_id == self.delivery_id)
        )


class Ledger:
    """Holds the last `hold` entries whole, and (delivery id, time) of up to five million.

    Ids are given in order, from 1, and never again, also after the inbox was emptied.
    """

    def __init__(self, *, hold: int = 200_000, hold_bytes: int = 512 * 1024 * 1024) -> None:
        self._hold = hold
        self._hold_bytes = hold_bytes
        self._last_id = 0
        self._empty()

    def _empty(self) -> None:
        self._entries: deque[Entry] = deque()
        self._bytes = 0
        self._bodiless = 0  # how many of the oldest entries have lost their body
        self._counts: Counter[tuple[str, str]] = Counter()
        self._chunks: deque[bytearray] = deque([bytearray()], maxlen=_CHUNKS)
        self._lines = 0

    def accept(
        self,
        *,
        provider: str,
        channel: str,
        to: str,
        delivery_id: str | None,
        headers: tuple[tuple[str, str], ...] = (),
        body: bytes,
        part: int = 0,
        shared_by: int = 1,
    ) -> Entry:
        """`shared_by`: how many entries hold this same body object, so that it is weighed once."""
        self._last_id += 1
        now = time.time()
        weight = len(body) // shared_by
        entry = Entry(self._last_id, now, provider, channel, to, delivery_id, headers, body, part, weight)
        self._entries.append(entry)
        self._counts[provider, channel] += 1
        self._bytes += weight
        self._write_line(delivery_id, now)
        self._make_room()
        return entry

    def _write_line(self, delivery_id: str | None, at: float) -> None:
        if self._lines == _LINES_IN_CHUNK:
            self._chunks.append(bytearray())
            self._lines = 0
        self._chunks[-1] += b"[%s,%.6f]\n" % (json.dumps(delivery_id).encode(), at)
        self._lines += 1

    def _make_room(self) -> None:
        if len(self._entries) > self._hold:
            oldest = self._entries.popleft()
            if self._bodiless:
                self._bodiless -= 1
            else:
                self._bytes -= oldest.weight
        while self._bytes > self._hold_bytes and self._bodiless < len(self._entries) - 1:
            heaviest_age = self._entries[self._bodiless]
            heaviest_age.body = None
            self._bytes -= heaviest_age.weight
            self._bodiless += 1

    @property
    def last_id(self) -> int:
        return self._last_id

    def entry(self, id: int) -> Entry | None:
        back = self._last_id - id
        if not 0 <= back < len(self._entries):
            return None
        return self._entries[-1 - back]

    def newest(self, asked: Filter, limit: int) -> list[Entry]:
        """Newest first. With `after`, the `limit` entries that follow it: a reader who asks again from the
        newest id it saw misses nothing."""
        if not asked.after:
            return list(islice(filter(asked.takes, reversed(self._entries)), limit))
        matches = list(filter(asked.takes, islice(reversed(self._entries), max(0, self._last_id - asked.after))))
        return matches[-limit:] if limit else []

    def count(self, asked: Filter) -> int:
        """Accepted since the inbox was emptied; with `to`, `delivery_id` or `after`, of those still held."""
        if asked.to or asked.delivery_id or asked.after:
            recent = islice(reversed(self._entries), self._last_id - asked.after)
            return sum(map(asked.takes, recent))
        return sum(
            n
            for (provider, channel), n in self._counts.items()
            if asked.provider in ("", provider) and asked.channel in ("", channel)
        )

    def lines(self) -> Iterator[bytes]:
        """All (delivery id, Unix time) pairs in order of acceptance, as newline-delimited JSON."""
        return (bytes(chunk) for chunk in list(self._chunks))

    def clear(self) -> None:
        self._empty()
