"""Log lines: one JSON object each, on stderr, from every process and every library, personal data masked.

`configure` is Django's LOGGING_CONFIG, so every process that reads the settings logs this way; config/celery.py
calls it for workers and beat before Celery would set up its own.
"""

from __future__ import annotations

import json
import logging
import logging.config
import os
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from apps.console.masking import masked_field

_LEADING = ("at", "level", "event", "logger", "process", "pid")
_OURS = frozenset({*_LEADING, "request_id", "task_id"})
"""Made or checked by us: never masked, so that a caller's request id can be searched for whatever it looks like."""

# What both our own calls and the records of libraries go through, where the line is written.
_SHARED: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
)


def configure(config: dict[str, Any]) -> None:
    """Set up logging and structlog. `config` is for `logging.config.dictConfig`."""
    logging.config.dictConfig(config)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


class _Line(str):
    """A whole line: there is nothing to do to it any more."""


class _Formatter(structlog.stdlib.ProcessorFormatter):
    def format(self, record: logging.LogRecord) -> str:
        return record.msg if type(record.msg) is _Line else super().format(record)


def json_lines(process: str) -> logging.Formatter:
    """The formatter of the LOGGING setting. `process`: what the lines call this process."""
    return _Formatter(
        foreign_pre_chain=_SHARED,
        processors=[
            _name_route,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            _stamp(process),
            _mask,
            _order,
            structlog.processors.JSONRenderer(_dump),
        ],
    )


def is_no_advice(record: logging.LogRecord) -> bool:
    """Not the web server's word on its number of threads: ours wait for the database's disk, not for a core."""
    return "Python threads" not in str(record.msg)


_access = logging.getLogger("notifier.access")


def tell_request(process: str, request_id: str, **said: str | int | float | None) -> None:
    """The line of a request, of which there are more than of all others together: a tenth of what accepting costs.

    Straight to the handlers, past every processor: `said` must hold nothing that is anybody's but ours.
    """
    if not _access.isEnabledFor(logging.INFO):
        return
    line = {
        "at": f"{datetime.now(UTC).replace(tzinfo=None).isoformat()}Z",
        "level": "info",
        "event": "request",
        "logger": _access.name,
        "process": process,
        "pid": os.getpid(),
        "request_id": request_id,
        **said,
    }
    text = _Line(msgspec.json.encode(line).decode())
    _access.handle(logging.LogRecord(_access.name, logging.INFO, "", 0, text, None, None))


def _stamp(process: str) -> Processor:
    def stamp(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
        event["process"], event["pid"] = process, os.getpid()
        return event

    return stamp


def _name_route(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """Django names the path of a request that crashed, and a path may name a person: the route takes its place."""
    request = getattr(event.get("_record"), "request", None)
    if request is not None and hasattr(request, "method"):
        event["event"] = "request_failed"
        event["method"], event["route"] = request.method, route_of(request)
        event["status"] = getattr(event["_record"], "status_code", None)
    return event


def route_of(request: Any) -> str:
    """The pattern that a request's path matched, with a leading slash; never the path itself."""
    match = getattr(request, "resolver_match", None)
    return f"/{match.route}" if match else "unmatched"


def _mask(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    return {key: value if key in _OURS and key != "event" else masked_field(key, value) for key, value in event.items()}


def _order(logger: WrappedLogger, name: str, event: EventDict) -> Mapping[str, Any]:
    first: MutableMapping[str, Any] = {key: event.pop(key) for key in _LEADING if key in event}
    return {**first, **event}


def _dump(event: Any, **_: Any) -> str:
    try:
        return msgspec.json.encode(event).decode()
    except (TypeError, ValueError, UnicodeError):  # a lone surrogate, say, in what somebody sent us
        return json.dumps(event, default=repr)
