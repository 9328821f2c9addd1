"""What authors may do to a value: the filters of Liquid, with a bound on what each may cost.

Filters run on data we do not know, written by people we do not know. Four of the library's own are replaced,
because their cost grows faster than what goes in (seen in python-liquid 2.3.6): `join` and `replace` multiply the
lengths of two strings, `uniq` compares every pair, `date` hands widths such as `%999999999Y` to strftime. Those
left out (`safe`, `escapejs`) would switch off escaping; `strip_html` feeds a parser that is quadratic on bad HTML.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import wraps
from typing import Any

import msgspec
from liquid import Environment, Markup, soft_str
from liquid.exceptions import FilterArgumentError, ResourceLimitError
from liquid.filter import liquid_filter, sequence_filter, string_filter, with_context, with_environment
from liquid.undefined import is_undefined

STRING_LIMIT = 256 * 1024  # characters in any value on the way; a whole email body is 512 KiB at most
LIST_LIMIT = 10_000
INT_LIMIT_BITS = 4096
BIG = 4096  # from this size on a filter costs as much as looking at the clock

ALLOWED = frozenset(
    {
        "abs",
        "append",
        "at_least",
        "at_most",
        "base64_decode",
        "base64_encode",
        "capitalize",
        "ceil",
        "compact",
        "concat",
        "date",
        "default",
        "divided_by",
        "downcase",
        "escape",
        "escape_once",
        "find",
        "find_index",
        "first",
        "floor",
        "has",
        "join",
        "last",
        "lstrip",
        "map",
        "minus",
        "modulo",
        "newline_to_br",
        "plus",
        "prepend",
        "reject",
        "remove",
        "remove_first",
        "remove_last",
        "replace",
        "replace_first",
        "replace_last",
        "reverse",
        "round",
        "rstrip",
        "size",
        "slice",
        "sort",
        "sort_natural",
        "split",
        "squish",
        "strip",
        "strip_newlines",
        "sum",
        "times",
        "truncate",
        "truncatewords",
        "uniq",
        "upcase",
        "url_decode",
        "url_encode",
        "where",
    }
)

_DIRECTIVE = re.compile(r"%(-?)([A-Za-z%])")
_DIRECTIVES = frozenset("aAbBcdDeFHIjmMnpRSTuUVwxXyYzZ%")
_UNPADDED = re.compile(r"^[0 ]+(?=\d)")


def _too_much(what: str) -> ResourceLimitError:
    return ResourceLimitError(what, token=None)


def bounded(filter_: Callable[..., Any]) -> Callable[..., Any]:
    """`filter_`, refusing what is too large on either side and looking at the render's clock when it is large."""

    @wraps(filter_)
    def run(value: Any, *args: Any, **kwargs: Any) -> Any:
        if is_undefined(value) and filter_.__name__ != "default":
            value.poke()
        if isinstance(value, str | list | tuple | range) and len(value) > BIG:
            if not isinstance(value, str) and len(value) > LIST_LIMIT:
                raise _too_much(f"a list has more than {LIST_LIMIT} items")
            kwargs["context"].spend()
        if not passes_context:
            del kwargs["context"]
        result = filter_(value, *args, **kwargs)
        if isinstance(result, str):
            if len(result) > STRING_LIMIT:
                raise _too_much(f"a text is longer than {STRING_LIMIT} characters")
        elif isinstance(result, list):
            if len(result) > LIST_LIMIT:
                raise _too_much(f"a list has more than {LIST_LIMIT} items")
        elif isinstance(result, int) and result.bit_length() > INT_LIMIT_BITS:
            raise _too_much("a number is too large")
        return result

    passes_context = getattr(filter_, "with_context", False)
    return with_context(run)


@with_environment
@sequence_filter
def join(left: Iterable[object], separator: object = " ", *, environment: Environment) -> str:
    items = [item if isinstance(item, str) else str(item) for item in left]
    glue = separator if isinstance(separator, str) else str(separator)
    if sum(map(len, items)) + len(glue) * len(items) > STRING_LIMIT:
        raise _too_much(f"a text is longer than {STRING_LIMIT} characters")
    if environment.autoescape and glue == " ":
        glue = Markup(" ")
    return glue.join(items)


@string_filter
def replace(value: str, old: object, new: object = "") -> str:
    old_text, new_text = soft_str(old), soft_str(new)
    if len(value) + value.count(old_text) * len(new_text) > STRING_LIMIT:
        raise _too_much(f"a text is longer than {STRING_LIMIT} characters")
    return value.replace(old_text, new_text)


@sequence_filter
def uniq(sequence: Iterable[Any], key: object = None) -> list[Any]:
    seen: set[bytes] = set()
    kept = []
    for item in sequence:
        looked_at = item.get(key) if key is not None and isinstance(item, dict) else item
        mark = msgspec.json.encode(looked_at, enc_hook=str)
        if mark not in seen:
            seen.add(mark)
            kept.append(item)
    return kept


@liquid_filter
def format_date(value: object, pattern: object = "%F") -> str:
    """`{{ order.eta | date: "%-d %B %Y" }}`: an RFC 3339 time, an ISO date or Unix seconds, as it was given.

    Nothing is shifted to another zone, and what is no time comes out unchanged ("tomorrow"), as Liquid has it.
    The directives are those of POSIX strftime; `%-d` leaves out the padding.
    """
    moment = _moment(value)
    if moment is None:
        return str(value)

    def put(match: re.Match[str]) -> str:
        unpadded, directive = match.groups()
        if directive not in _DIRECTIVES:
            raise FilterArgumentError(f"date has no directive %{directive}", token=None)
        text = moment.strftime(f"%{directive}")
        return _UNPADDED.sub("", text) if unpadded else text

    return _DIRECTIVE.sub(put, str(pattern))


def _moment(value: object) -> datetime | None:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str) and len(value) <= 40:
            return datetime.fromisoformat(value.strip())
    except (ValueError, OverflowError, OSError):
        pass
    return None


def register(environment: Environment) -> None:
    """Leave the allowed filters only, each bounded."""
    known = environment.filters | {"join": join, "replace": replace, "uniq": uniq, "date": format_date}
    environment.filters = {name: bounded(known[name]) for name in ALLOWED}


class Meter:
    """What one render has used of its CPU time. Not of the clock's: a worker that was stopped has not been slow."""

    __slots__ = ("_until",)

    def __init__(self, limit_s: float) -> None:
        self._until = time.thread_time() + limit_s

    def check(self) -> None:
        if time.thread_time() > self._until:
            raise _too_much("rendering took too long")
