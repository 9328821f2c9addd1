"""Is the data what the template expects? JSON Schema (Draft 2020-12), in the part of it whose cost we can bound.

A schema is written by an author and applied to a caller's data, so neither may make it expensive: keywords with
regular expressions (`pattern`, `patternProperties`), quadratic ones (`uniqueItems`), and those that reach beyond
the schema (`$ref` other than `#/$defs/...`, `$dynamicRef`, `$id`) are refused when a template is saved, and each
check has a budget of steps. `format` is for people: it is not checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import msgspec
from jsonschema import Draft202012Validator, ValidationError, validators
from jsonschema.exceptions import SchemaError
from referencing import Registry

from apps.rest.catalogue import FieldCode
from apps.rest.paths import Path
from apps.templates.versions import Kept

SCHEMA_LIMIT_BYTES = 32 * 1024
STEPS_LIMIT = 50_000  # keywords applied and items looked at, in one check; about a quarter of a second
ERRORS_LIMIT = 20

_ONE_SCHEMA = frozenset({"additionalProperties", "items", "not", "if", "then", "else"})
_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_MAPS = frozenset({"properties", "$defs"})
_PLAIN = frozenset({
    "type", "enum", "const", "required", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "minItems", "maxItems", "minProperties", "maxProperties", "title", "description", "examples",
    "default", "format", "deprecated", "$comment", "$schema", "$ref",
})  # fmt: skip
KEYWORDS = _ONE_SCHEMA | _LISTS | _MAPS | _PLAIN

_CODES = {
    "required": FieldCode.MISSING_VARIABLE,
    "type": FieldCode.WRONG_TYPE,
    "additionalProperties": FieldCode.UNKNOWN_FIELD,
    "minLength": FieldCode.TOO_SHORT,
    "minItems": FieldCode.TOO_SHORT,
    "minProperties": FieldCode.TOO_SHORT,
    "maxLength": FieldCode.TOO_LONG,
    "maxItems": FieldCode.TOO_MANY,
    "maxProperties": FieldCode.TOO_MANY,
    "minimum": FieldCode.OUT_OF_RANGE,
    "maximum": FieldCode.OUT_OF_RANGE,
    "exclusiveMinimum": FieldCode.OUT_OF_RANGE,
    "exclusiveMaximum": FieldCode.OUT_OF_RANGE,
}

_validators: Kept[int | str, Any] = Kept(512, float("inf"))
_left: ContextVar[list[int]] = ContextVar("steps left of this check")

Fault = tuple[tuple[str | int, ...], FieldCode, str]
"""Where in the data or schema, what kind, and in words that hold no value of the data."""


class TooComplex(Exception):
    pass


def schema_faults(schema: Any) -> list[Fault]:
    """Why `schema` cannot be a template's `data_schema`; empty when it can. `{}` allows everything."""
    if not isinstance(schema, dict):
        return [((), FieldCode.WRONG_TYPE, "must be an object")]
    size = len(msgspec.json.encode(schema))
    if size > SCHEMA_LIMIT_BYTES:
        return [((), FieldCode.TOO_LONG, f"at most {SCHEMA_LIMIT_BYTES} bytes of JSON, this has {size}")]
    faults = list(_unsupported(schema, ()))
    if faults:
        return faults[:ERRORS_LIMIT]
    if schema.get("type", "object") != "object":
        return [(("type",), FieldCode.NOT_ALLOWED, "data is always an object")]
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        return [(tuple(error.absolute_path), FieldCode.NOT_ALLOWED, f"is no JSON Schema: {error.message[:200]}")]
    return []


def data_faults(schema: Mapping[str, Any], data: Mapping[str, Any], cache_key: int | str) -> list[Fault]:
    """What is wrong with `data`, the first 20 faults. `cache_key` names the schema for ever, as a version's id does."""
    if not schema:
        return []
    steps = [STEPS_LIMIT]
    token = _left.set(steps)
    faults: list[Fault] = []
    try:
        validator = _validators.get(cache_key, lambda: _Metered(schema, registry=_NOTHING))
        for error in validator.iter_errors(data):
            faults.extend(_faults_of(error))
            if len(faults) >= ERRORS_LIMIT:
                break
    except (TooComplex, RecursionError):
        return [((), FieldCode.NOT_ALLOWED, "is too large to be checked against the template's schema")]
    finally:
        _left.reset(token)
    return faults[:ERRORS_LIMIT]


def type_at(schema: Any, path: tuple[str | int, ...]) -> str:
    """The type that the schema names for `path`, "" when it names none."""
    for step in path:
        below = schema.get("items" if isinstance(step, int) else "properties", {}) if isinstance(schema, dict) else {}
        schema = below if isinstance(step, int) else below.get(step, {})
    found = schema.get("type", "") if isinstance(schema, dict) else ""
    return found if isinstance(found, str) else " or ".join(map(str, found))


def _metered(keyword: Callable[..., Any]) -> Callable[..., Any]:
    def run(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        left = _left.get()
        left[0] -= 1 + (len(instance) if isinstance(instance, list | dict) else 0)
        left[0] -= len(value) if isinstance(value, list) else 0
        if left[0] < 0:
            raise TooComplex
        yield from keyword(validator, value, instance, schema) or ()

    return run


_NOTHING: Registry[Any] = Registry()  # finds nothing beyond the schema itself: no file, no network
_Metered: Any = validators.extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    {name: _metered(keyword) for name, keyword in Draft202012Validator.VALIDATORS.items() if name in KEYWORDS},
)


def _unsupported(schema: Any, at: tuple[str | int, ...]) -> Iterator[Fault]:
    if not isinstance(schema, dict):
        return  # a boolean; anything else the meta-schema finds
    for keyword, value in schema.items():
        place = (*at, keyword)
        if keyword not in KEYWORDS:
            yield (
                place,
                FieldCode.NOT_ALLOWED,
                f"this keyword is not supported; there are {', '.join(sorted(KEYWORDS))}",
            )
        elif keyword == "$ref" and not (isinstance(value, str) and value.startswith("#/$defs/")):
            yield place, FieldCode.NOT_ALLOWED, "a reference stays inside the schema: #/$defs/..."
        elif keyword == "$defs" and at:
            yield place, FieldCode.NOT_ALLOWED, "definitions are at the top"
        elif keyword in _ONE_SCHEMA:
            yield from _unsupported(value, place)
        elif keyword in _LISTS and isinstance(value, list):
            for index, item in enumerate(value):
                yield from _unsupported(item, (*place, index))
        elif keyword in _MAPS and isinstance(value, dict):
            for name, item in value.items():
                yield from _unsupported(item, (*place, name))


def _faults_of(error: ValidationError) -> Iterator[Fault]:
    path = tuple(error.absolute_path)
    keyword = str(error.validator)
    wanted: Any = error.validator_value
    code = _CODES.get(keyword, FieldCode.NOT_ALLOWED)
    if keyword == "required" and isinstance(error.instance, dict):
        # The library reports each missing name for itself, and only in words.
        for name in wanted:
            if name not in error.instance and f"{name!r} is a required" in error.message:
                yield (*path, name), code, "is missing"
    elif keyword == "additionalProperties" and isinstance(error.instance, dict):
        known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
        for name in error.instance:
            if name not in known:
                yield (*path, name), code, f"known here: {', '.join(known) or 'none'}"
    elif keyword == "type":
        yield path, code, f"must be {wanted if isinstance(wanted, str) else ' or '.join(wanted)}"
    elif keyword in ("enum", "const"):
        yield path, code, f"must be one of {str(wanted)[:200]}" if keyword == "enum" else f"must be {str(wanted)[:200]}"
    elif keyword in _CODES:
        yield path, code, f"{keyword} is {wanted}"
    else:
        yield path, code, f"does not match the template's schema ({keyword})"


def path_under(root: Path, steps: tuple[str | int, ...]) -> Path:
    for step in steps:
        root = (root, step)
    return root
