"""Scripted faults: which message meets which trouble."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Mode(StrEnum):
    HTTP_500 = "http_500"
    HTTP_429 = "http_429"
    HTTP_401 = "http_401"
    HANG = "hang"  # accepts nothing, answers nothing; the connection is closed when the faults are deleted
    RESET_BEFORE = "reset_before"  # resets before the body is read: nothing accepted
    RESET_AFTER = "reset_after"  # accepts, then resets: the answer is lost
    GARBAGE = "garbage"  # accepts, then answers 200 with something that is not the vendor's
    HUGE = "huge"  # accepts, then answers 200 with 16 MiB
    SLOW = "slow"  # accepts, then drips the answer byte by byte
    GONE = "gone"  # the vendor's word for a dead address
    ANSWER = "answer"  # exactly `status`, `headers`, `body`; accepts nothing
    GOAWAY = "goaway"  # HTTP/2 only: answers, and announces the end of the connection
    LATENCY = "latency"  # nothing but `latency_ms`


REFUSALS = frozenset({Mode.HTTP_500, Mode.HTTP_429, Mode.HTTP_401, Mode.GONE, Mode.ANSWER})
SPOILS = frozenset({Mode.RESET_AFTER, Mode.GARBAGE, Mode.HUGE, Mode.SLOW})
GARBAGE_BODY = b"<html><body>It works!</body></html>"
HUGE_BODY_BYTES = 16 * 1024 * 1024


class BadFault(ValueError):
    """What was asked for is not a fault. The text names the field."""


@dataclass(slots=True)
class Fault:
    """`provider` empty: all of them. `count` None: until deleted. `stage`: SMTP only, see `email_smtp`."""

    id: int
    provider: str
    mode: Mode
    rate: float = 1.0
    count: int | None = None
    latency_ms: float = 0.0
    retry_after: float | None = None
    seed: int = 0
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    stage: str = ""
    fired: int = 0
    dice: random.Random = field(default_factory=random.Random, repr=False)

    def shown(self) -> dict[str, Any]:
        names = ("id", "provider", "mode", "rate", "count", "latency_ms", "retry_after", "seed", "fired")
        answer = ("status", "headers", "body", "stage") if self.mode is Mode.ANSWER else ()
        return {name: getattr(self, name) for name in (*names, *answer)}


_NUMBERS = {
    "rate": (0.0, 1.0),
    "latency_ms": (0.0, 600_000.0),
    "retry_after": (0.0, 86_400.0),
}
_COUNTED = {"count": (1, 1_000_000_000), "seed": (0, 2**63), "status": (100, 599)}
_TEXTS = ("body", "stage")
_FIELDS = {"provider", "mode", "headers", *_NUMBERS, *_COUNTED, *_TEXTS}


class Faults:
    """The list of faults in force.

    The first that matches a message and wins its dice decides alone; pure latency is asked last.
    """

    def __init__(self, *, allowed: bool = True) -> None:
        self.allowed = allowed
        self.providers: set[str] = set()
        self._faults: list[Fault] = []
        self._next_id = 1
        self.lifted = asyncio.Event()  # replaced on each clearing: what hangs waits for it

    def add(self, asked: Any) -> Fault:
        """`asked` is decoded JSON. Raises BadFault."""
        if not isinstance(asked, dict):
            raise BadFault("the body must be a JSON object")
        if unknown := set(asked) - _FIELDS:
            raise BadFault(f"unknown field {min(unknown)}; known: {', '.join(sorted(_FIELDS))}")
        given = {name: value for name, value in asked.items() if value is not None}
        provider = given.get("provider", "")
        if provider in ("*", "all"):
            provider = ""
        if provider and provider not in self.providers:
            raise BadFault(f"provider must be one of {', '.join(sorted(self.providers))}, or empty for all")
        try:
            mode = Mode(given.get("mode", Mode.LATENCY))
        except ValueError:
            raise BadFault(f"mode must be one of {', '.join(Mode)}") from None
        fault = Fault(self._next_id, provider, mode, **_checked(given))
        if "seed" not in given:
            fault.seed = secrets.randbelow(2**31)
        fault.dice = random.Random(fault.seed)  # noqa: S311 - dice that can be thrown again
        self._next_id += 1
        self._faults.append(fault)
        self._faults.sort(key=lambda one: one.mode is Mode.LATENCY)
        return fault

    def draw(self, provider: str, only: Mode | None = None) -> Fault | None:
        """The fault that meets this message, counted; None nearly always."""
        if not self._faults:
            return None
        for fault in self._faults:
            if fault.provider not in ("", provider) or (only is not None and fault.mode is not only):
                continue
            if fault.rate < 1.0 and fault.dice.random() >= fault.rate:
                continue
            fault.fired += 1
            if fault.count is not None and fault.fired >= fault.count:
                self._faults.remove(fault)
            return fault
        return None

    def shown(self) -> list[dict[str, Any]]:
        return [fault.shown() for fault in self._faults]

    def clear(self, provider: str = "") -> None:
        """Without a provider all of them; what hangs is let go in either case."""
        self._faults = [fault for fault in self._faults if provider and fault.provider != provider]
        self.lifted.set()
        self.lifted = asyncio.Event()


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, (least, most) in {**_NUMBERS, **_COUNTED}.items():
        if name not in given:
            continue
        value = given[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not least <= value <= most or (name in _COUNTED and value != int(value)):
            raise BadFault(f"{name} must be a number from {least} to {most}")
        fields[name] = int(value) if name in _COUNTED else float(value)
    for name in _TEXTS:
        if name in given:
            value = given[name]
            if name == "body" and isinstance(value, dict | list):
                value = json.dumps(value)
            if not isinstance(value, str):
                raise BadFault(f"{name} must be text")
            fields[name] = value
    if "headers" in given:
        headers = given["headers"]
        if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
            raise BadFault("headers must be an object of strings")
        fields["headers"] = headers
    return fields
