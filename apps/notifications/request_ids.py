"""The request ids in a worker's log lines: of the requests that its task was rung for, or whose work it found."""

from __future__ import annotations

from collections.abc import Iterable

import structlog

MOST_NAMED = 10


def joined(ids: Iterable[str]) -> str:
    """Each once, with commas between, at most `MOST_NAMED`."""
    return ",".join(list(dict.fromkeys(filter(None, ids)))[:MOST_NAMED])


def name_too(ids: Iterable[str]) -> None:
    """Every line that this task still writes names these requests, beside those it named before."""
    named = structlog.contextvars.get_contextvars().get("request_id", "")
    structlog.contextvars.bind_contextvars(request_id=joined([*named.split(","), *ids]))
