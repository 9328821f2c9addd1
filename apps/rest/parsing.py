"""The one way JSON comes in: strict, bounded, and fast enough for a body of 10 MiB.

The standard library parses; a few scans at C speed decide which of its hooks are needed at all, since a hook in
Python costs more than the parsing. Only a body that is refused is read twice, to say where the fault lies; that costs
several times the parsing, so a large one is told what is wrong and not where.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import IO, Any, NoReturn

from rest_framework.exceptions import UnsupportedMediaType
from rest_framework.parsers import BaseParser

from apps.rest.body import BODY_LIMIT, raw_body, too_large
from apps.rest.paths import Path, pointer_to
from apps.rest.problems import FieldError, Problem

MAX_DEPTH = 20
MAX_INTEGER = 2**53  # beyond it a double, and so a caller in JavaScript, cannot tell neighbours apart
EXPLAINED_CHARS = 2**20  # the longest text that is read again for a pointer to its fault: 0.4 s at worst

# All of a text whose escapes stand for characters: it ends before the first U+0000 or surrogate without its other half.
_FINE_TEXT = re.compile(
    r"(?:[^\\]++|\\[^u]|\\u(?!0000|[dD][89a-fA-F])....|\\u[dD][89abAB]..\\u[dD][c-fC-F]..)*+", re.DOTALL
)
# Every digit as 0 and all else as a space: looking for sixteen zeros then costs a tenth of a regular expression.
_DIGITS = bytes(ord("0") if chr(byte).isascii() and chr(byte).isdigit() else ord(" ") for byte in range(256))
_LONG_NUMBER = b"0" * 16
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_json(body: bytes, *, limit_bytes: int = BODY_LIMIT) -> Any:
    """The value in `body`: plain dicts, lists, strings without U+0000 and surrogates, ints, finite floats, bools, None.

    Raises Problem: body-too-large, invalid-text, invalid-json, duplicate-key, invalid-number, too-deep; nothing else.
    """
    if len(body) > limit_bytes:
        raise too_large(limit_bytes)
    if (nul := body.find(b"\0")) >= 0:
        raise Problem("invalid-text", f"the body holds U+0000 at byte {nul}")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise Problem("invalid-text", f"the body is not UTF-8 at byte {error.start}") from None
    try:
        value = (_exact if _LONG_NUMBER in body.translate(_DIGITS) else _plain).decode(text)
    except _Refused as refused:
        if len(text) > EXPLAINED_CHARS:
            raise Problem(refused.code, f"{refused}; where is told for bodies of up to 1 MiB") from None
        _explain(text)
    except json.JSONDecodeError as error:
        raise _no_json(error) from None
    except RecursionError:
        raise _too_deep() from None
    if _is_too_deep(value):
        raise _too_deep()
    if "\\u" in text and (fine := _FINE_TEXT.match(text)) and fine.end() < len(text):
        _refuse_text(text, fine.end(), value)
    return value


class StrictJSONParser(BaseParser):
    """`parse_json` for DRF views; a view's `body_limit` is the largest body it takes."""

    media_type = "application/json"

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        context = parser_context or {}
        request = context["request"]._request
        refuse_other_forms(request.META)
        limit = getattr(context.get("view"), "body_limit", BODY_LIMIT)
        return parse_json(raw_body(request, limit), limit_bytes=limit)


def refuse_other_forms(meta: Mapping[str, Any]) -> None:
    """Raise for a body that is compressed or in another charset."""
    if meta.get("HTTP_CONTENT_ENCODING", "identity").lower() not in ("", "identity"):
        raise Problem("unsupported-media-type", "compressed bodies are not taken: send it without Content-Encoding")
    _, _, parameters = meta.get("CONTENT_TYPE", "").partition(";")
    charset = re.search(r"charset\s*=\s*\"?([^\s;\"]+)", parameters, re.IGNORECASE)
    if charset and charset[1].lower() not in ("utf-8", "utf8"):
        raise UnsupportedMediaType(meta["CONTENT_TYPE"])


# --- The fast way ---------------------------------------------------------------------------------------------


class _Refused(ValueError):
    """Something that JSON parsers let pass and we do not: the code of its problem, and what it is."""

    def __init__(self, code: str, fault: str) -> None:
        super().__init__(fault)
        self.code = code


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise _Refused("duplicate-key", f"an object names {json.dumps(_shown(key))} twice")
    return members


def _refuse(literal: str) -> NoReturn:
    raise _Refused("invalid-number", _out_of_range(literal))


def _finite(literal: str) -> float:
    number = float(literal)
    if math.isinf(number):
        _refuse(literal)
    return number


def _is_integer_in_range(literal: str) -> bool:
    # The length first: int() of thousands of digits is slow, and refused by Python above 4,300.
    return len(literal) <= 17 and -MAX_INTEGER <= int(literal) <= MAX_INTEGER


def _bounded(literal: str) -> int:
    if len(literal) >= len(_LONG_NUMBER) and not _is_integer_in_range(literal):
        _refuse(literal)
    return int(literal)


def _out_of_range(literal: str) -> str:
    return f"{_shown(literal)} is out of range"


def _shown(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:20]}... ({len(text)} characters)"


_plain = json.JSONDecoder(object_pairs_hook=_members, parse_float=_finite, parse_constant=_refuse)
_exact = json.JSONDecoder(object_pairs_hook=_members, parse_float=_finite, parse_constant=_refuse, parse_int=_bounded)


def _is_too_deep(value: Any) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if type(node) is dict else node)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True


def _no_json(error: json.JSONDecodeError) -> Problem:
    return Problem("invalid-json", f"{error.msg.removesuffix(' at')} at line {error.lineno}, column {error.colno}")


def _too_deep() -> Problem:
    return Problem("too-deep", f"objects and arrays may be nested {MAX_DEPTH} deep")


# --- The slow way, for a body that is refused: where is the fault? ------------------------------------------------


class _Pairs(list[tuple[str, Any]]):
    """An object with its members as written."""


class _BadNumber(str):
    pass


_explaining = json.JSONDecoder(
    object_pairs_hook=_Pairs,
    parse_constant=_BadNumber,
    parse_float=lambda literal: 0.0 if math.isfinite(float(literal)) else _BadNumber(literal),
    parse_int=lambda literal: 0 if _is_integer_in_range(literal) else _BadNumber(literal),
)


def _explain(text: str) -> NoReturn:
    try:
        value = _explaining.decode(text)
    except json.JSONDecodeError as error:
        raise _no_json(error) from None
    except RecursionError:
        raise _too_deep() from None
    code, fault, path = next(_faults(value, None, 1))
    if code == "too-deep":
        raise _too_deep()
    raise Problem(code, fault, errors=[FieldError(pointer_to(path), code.replace("-", "_"), fault)])


def _faults(value: Any, path: Path, depth: int) -> Iterator[tuple[str, str, Path]]:
    if isinstance(value, _BadNumber):
        yield "invalid-number", _out_of_range(value), path
    elif isinstance(value, list):
        if depth > MAX_DEPTH:
            yield "too-deep", "", path
            return
        seen: set[str | int] = set()
        members = value if isinstance(value, _Pairs) else enumerate(value)
        for key, item in members:
            if isinstance(value, _Pairs):
                if key in seen:
                    yield "duplicate-key", "the object names this key twice", (path, key)
                seen.add(key)
            yield from _faults(item, (path, key), depth + 1)


def _refuse_text(text: str, offset: int, value: Any) -> NoReturn:
    """For the escape at `offset`, which no string of `value` may hold."""
    is_nul = text.startswith("\\u0000", offset)
    fault = "U+0000 cannot be stored" if is_nul else "a surrogate without its other half is no character"
    if len(text) > EXPLAINED_CHARS:
        line, column = text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)
        raise Problem("invalid-text", f"{fault}, at line {line}, column {column}")
    path = next(path for path, string in _strings(value, None) if "\0" in string or _SURROGATE.search(string))
    raise Problem("invalid-text", fault, errors=[FieldError(pointer_to(path), "invalid_text", fault)])


def _strings(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Every string of a value that is not too deep, keys included, as written."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield (path, key), key
            yield from _strings(item, (path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, (path, index))
