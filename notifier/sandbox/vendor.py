"""What one vendor has to bring: its wire rules in, its own words for refusals, and how people see a message."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from notifier.sandbox.faults import Faults, Mode
from notifier.sandbox.keys import Keys
from notifier.sandbox.ledger import Entry, Ledger
from notifier.sandbox.magic import Throttle
from notifier.sandbox.options import Options
from notifier.sandbox.receipts import Courier

JSON = "application/json; charset=UTF-8"


@dataclass(frozen=True, slots=True)
class Answer:
    """`accepted`: the message is in the ledger. `delay_s`: the vendor takes its time before it answers."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    accepted: bool = False
    delay_s: float = 0.0


@dataclass(slots=True)
class Call:
    """One HTTP request, read to its end. `headers` is case-insensitive."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    url: str  # scheme and authority that the caller used, without the path


@dataclass(frozen=True, slots=True)
class Preview:
    """A message as a person sees it, whatever the vendor."""

    look: str  # "phone", "desktop", "sms" or "mail"
    sender: str = ""
    title: str = ""
    text: str = ""
    html: bool = False
    image: str = ""
    replaces: str = ""  # a later message with the same word takes this one's place on the device
    note: str = ""  # small print: badge, segments, attachments ...


@dataclass(slots=True)
class Parts:
    """What all vendors of one sandbox share. `public_url` is known once the port is bound."""

    options: Options
    keys: Keys
    ledger: Ledger
    faults: Faults
    courier: Courier
    throttle: Throttle
    public_url: str = ""


class Vendor(ABC):
    provider: ClassVar[str]
    channel: ClassVar[str]

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        parts.faults.providers.add(self.provider)

    @abstractmethod
    def body(self, entry: Entry, raw: bytes) -> Any:
        """What was sent, as a JSON value."""

    @abstractmethod
    def preview(self, entry: Entry, raw: bytes) -> Preview: ...

    def headers(self, entry: Entry, raw: bytes) -> dict[str, str]:
        return dict(entry.headers)

    def html(self, entry: Entry, raw: bytes) -> str:
        """The mail's HTML part, else empty."""
        return ""


class HttpVendor(Vendor):
    """A vendor that speaks HTTP, on the common port or its own."""

    messages: ClassVar[re.Pattern[str]]  # the path that messages are posted to: faults strike here

    @abstractmethod
    def receive(self, call: Call) -> Answer:
        """Check and accept one request, without waiting for anything."""

    @abstractmethod
    def refusal(self, mode: Mode, retry_after: float | None, call: Call) -> Answer:
        """The vendor's own words for http_500, http_429, http_401 and gone."""

    def other(self, call: Call) -> Answer | None:
        """Requests beside messages (a token endpoint ...); None when the path is not this vendor's."""
        return None


class Interned:
    """Header tuples repeat from message to message: keep one of each, so that 200,000 entries stay small."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self._seen: dict[tuple[str | None, ...], tuple[tuple[str, str], ...]] = {}

    def __call__(self, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        key = tuple(map(headers.get, self._names))
        found = self._seen.get(key)
        if found is None:
            found = tuple((name, value) for name, value in zip(self._names, key, strict=True) if value is not None)
            if len(self._seen) < 1000:
                self._seen[key] = found
        return found
