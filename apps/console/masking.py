"""Taking personal data and secrets out of log lines: the last resort, behind code that does not log them.

It errs on the side of masking. What it must leave readable, because people search for it: our own ids (UUIDs),
file names and line numbers of tracebacks, dates, IP addresses and plain figures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date
from functools import lru_cache
from typing import Any
from uuid import UUID

MOST_DEPTH = 6
MOST_ITEMS = 100
MOST_CHARACTERS = 20_000  # of one value; a traceback has a few thousand

_NAMES = (
    r"pass(?:word|wd|phrase)?|secret|token|credentials?|authorization|cookie|signature|(?:api|private|app)[_-]?key|dsn"
)
_SECRET_KEY = re.compile(
    rf"(?:^|[_-])(?:{_NAMES}|e?mail|phone|address(?:es)?|recipients?|body|text|subject|title|data|args|kwargs)$",
    re.IGNORECASE,
)

_UUID = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_UUIDS = re.compile(_UUID)
# The Unicode spellings of "@" that a mail program would take, and its escape in a URL.
_AT = r"(?:@|%40|\uff20|\ufe6b)"
_EMAIL = re.compile(
    rf'(?:"[^"@]{{1,64}}"|[^\s@<>()\[\],;:\\]+){_AT}[^\s@<>()\[\]"\',;:/\\?&]+\.[^\s@<>()\[\]"\',;:/\\?&]+'
)
_EMAIL_AT_IP = re.compile(rf"[^\s@<>()\[\],;:\\]+{_AT}\[[^\]\s]{{1,60}}\]")
_CREDENTIALS_IN_URL = re.compile(r"(?<=://)[^\s/@\"'<>]*@")
_QUERY = re.compile(r"(?<=[\w/.%-])\?[^\s\"'<>?=]+=[^\s\"'<>]*")
_PHONE = re.compile(r"(?<![\w.%])(?<!\w-)(?:\+|\(|00)?\s?\(?\d(?:[\s().\-/]{0,3}\d){6,17}(?!\w|-\w|:\d|\.\d)")
_E164 = re.compile(r"\+\d[\d\s().-]{5,22}\d")
_DATE_OR_IP = re.compile(r"\d{4}-\d\d-\d\d\b.*|\d{1,3}(?:\.\d{1,3}){3}|\d+\.\d+", re.DOTALL)
_PEM = re.compile(r"-----BEGIN [^-]+-----.*?(?:-----END [^-]+-----|\Z)", re.DOTALL)
_JWT = re.compile(r"\beyJ[\w-]+\.[\w-]+(?:\.[\w-]*)?")
_PREFIXED = re.compile(r"\b(?:as|whsec|sk|rk)_[\w+/=-]{6,}")
_SCHEME = re.compile(r"\b(bearer|basic)\s+(?=[\w.~+/=-]*[\d=])[\w.~+/=-]{6,}", re.IGNORECASE)
_NAMED = re.compile(rf"\b([\w-]*(?:{_NAMES}))([\"']?\s*[=:]\s*[\"']?)(?!\[)[^\s\"',;&)}}\]]+", re.IGNORECASE)
_LONG = re.compile(r"[\w+/-]{32,}={0,2}", re.ASCII)
# PostgreSQL puts the row's values there: names, addresses, whatever was written.
_DATABASE_DETAIL = re.compile(r"^(DETAIL|CONTEXT):.*$", re.MULTILINE)

_SHORT = 64
_LEAST_DIGITS_BARE = 9
_LONG_IS_RANDOM = 0.2


def masked_text(text: str) -> str:
    """`text` without addresses, phone numbers, tokens, secrets, query strings and PostgreSQL's row values."""
    if len(text) <= _SHORT:
        return _masked_short(text)
    return _apply(text[:MOST_CHARACTERS])


@lru_cache(maxsize=1024)
def _masked_short(text: str) -> str:
    """Event names, routes, queues: the same few, again and again. 30 us become 0.1."""
    return _apply(text)


def _apply(text: str) -> str:
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def masked(value: Any, depth: int = 0) -> Any:
    """A value as JSON can hold it, masked at every depth. Anything unknown becomes its masked `repr`."""
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return masked_text(value)
        case UUID() | date():
            return str(value)
        case Mapping() if depth < MOST_DEPTH:
            pairs = list(value.items())[:MOST_ITEMS]
            return {masked_text(str(key)): masked_field(str(key), inner, depth + 1) for key, inner in pairs}
        case list() | tuple() | set() | frozenset() if depth < MOST_DEPTH:
            return [masked(inner, depth + 1) for inner in list(value)[:MOST_ITEMS]]
    try:
        return masked_text(repr(value))
    except Exception:  # a log line must not fail on what it describes
        return f"<{type(value).__name__}>"


def masked_field(key: str, value: Any, depth: int = 0) -> Any:
    """The same for a value under a name: what is called a token is one, whatever it looks like."""
    if value not in (None, "") and not isinstance(value, bool) and _SECRET_KEY.search(key):
        return "[masked]"
    return masked(value, depth)


def _phone(found: re.Match[str]) -> str:
    text = found[0]
    if _DATE_OR_IP.fullmatch(text):
        return text
    if text.isdigit() and len(text) < _LEAST_DIGITS_BARE:
        return text  # a count, a process id
    return "[phone]"


def _random(found: re.Match[str]) -> str:
    """Keys and tokens change between letters and digits all the time; words and paths do not."""
    run = found[0]
    rest = _UUIDS.sub("", run)
    if len(rest) < 32:
        return run
    kinds = [0 if c.isdigit() else 1 if c.isupper() else 2 for c in rest if c.isalnum()]
    changes = sum(a != b for a, b in zip(kinds, kinds[1:], strict=False))
    has_both = 0 in kinds and len(set(kinds)) > 1
    if kinds and (set(kinds) == {0} or (has_both and changes / len(kinds) >= _LONG_IS_RANDOM)):
        return "[secret]"
    return run


_RULES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (_PEM, "[secret]"),
    (_DATABASE_DETAIL, r"\1: [cut]"),
    (_CREDENTIALS_IN_URL, "[secret]@"),
    (_QUERY, "?[cut]"),
    (_EMAIL, "[email]"),
    (_EMAIL_AT_IP, "[email]"),
    (_SCHEME, r"\1 [secret]"),
    (_JWT, "[secret]"),
    (_PREFIXED, "[secret]"),
    (_NAMED, r"\1\2[masked]"),
    (_LONG, _random),
    (_E164, "[phone]"),
    (_PHONE, _phone),
)
