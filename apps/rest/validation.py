"""What a body or a query must look like: small declared shapes that report every fault at once.

A shape both parses and describes itself (`schema()`), so the OpenAPI file cannot drift from what is accepted.
Written for bodies of a thousand items: no object is made per value, no pointer is built until there is a fault.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from apps.rest.catalogue import FieldCode
from apps.rest.paths import Path, pointer_to
from apps.rest.problems import MAX_ERRORS, FieldError, invalid


class _Invalid:
    def __repr__(self) -> str:
        return "INVALID"

    def __bool__(self) -> bool:
        return False


INVALID: Final = _Invalid()
"""What a field returns for a value that it reported; never reaches a service."""


class Errors:
    """The faults of one body: the first ones are kept, all are counted."""

    def __init__(self, *, most: int = MAX_ERRORS) -> None:
        self.most = most
        self.items: list[FieldError] = []
        self.total = 0

    def add(self, path: Path, code: FieldCode, detail: str) -> _Invalid:
        self.total += 1
        if len(self.items) < self.most:
            self.items.append(FieldError(pointer_to(path), code.value, detail))
        return INVALID

    def add_query(self, name: str, code: FieldCode, detail: str) -> None:
        self.total += 1
        if len(self.items) < self.most:
            self.items.append(FieldError(f"?{name}", code.value, detail))

    def __bool__(self) -> bool:
        return self.total > 0

    def raise_if_any(self) -> None:
        """Raises Problem validation-failed."""
        if self.total > len(self.items):
            raise invalid(self.items, f"{self.total} problems, of which these are the first; nothing was changed")
        if self.total:
            raise invalid(self.items)


class Field:
    """One kind of value. `parse` returns it in its normal form, or reports and returns INVALID."""

    required = False
    nullable = False
    default: Any = None
    has_default = False

    def __init__(self, *, required: bool = False, nullable: bool = False, **default: Any) -> None:
        """`default=` fills an absent field of a Shape; without it an absent field stays absent."""
        self.required, self.nullable = required, nullable
        if default:
            self.default = default.pop("default")
            self.has_default = True
        if default:
            raise TypeError(f"unknown options: {', '.join(default)}")

    def parse(self, value: Any, path: Path, errors: Errors) -> Any:
        raise NotImplementedError

    def from_text(self, text: str, path: Path, errors: Errors) -> Any:
        """The same from a query parameter, which is always text."""
        return self.parse(text, path, errors)

    def schema(self) -> dict[str, Any]:
        """JSON Schema, without the null of a nullable field."""
        raise NotImplementedError

    def full_schema(self) -> dict[str, Any]:
        schema = self.schema()
        if self.nullable and "type" not in schema:
            schema = {"anyOf": [schema, {"type": "null"}]}
        elif self.nullable:
            schema["type"] = [schema["type"], "null"]
            if "enum" in schema:
                schema["enum"] = [*schema["enum"], None]
        if self.has_default and self.default is not None and not callable(self.default):
            schema["default"] = self.default
        return schema


class Text(Field):
    """A string; lengths in code points, or in UTF-8 bytes with `max_bytes`. `pattern` must match the whole of it."""

    code = FieldCode.NOT_ALLOWED

    def __init__(
        self,
        *,
        min: int = 0,
        max: int | None = None,
        max_bytes: int | None = None,
        pattern: str | None = None,
        says: str = "",
        **options: Any,
    ) -> None:
        """`says` is the pattern in words, for the error text."""
        super().__init__(**options)
        self.min, self.max, self.max_bytes, self.says = min, max, max_bytes, says
        self.pattern = pattern
        self._matches = re.compile(pattern).fullmatch if pattern else None

    def parse(self, value: Any, path: Path, errors: Errors) -> Any:
        if type(value) is not str:
            return errors.add(path, FieldCode.WRONG_TYPE, "must be a string")
        if len(value) < self.min:
            return errors.add(path, FieldCode.TOO_SHORT, f"needs at least {_count(self.min, 'character')}")
        if self.max is not None and len(value) > self.max:
            return errors.add(
                path, FieldCode.TOO_LONG, f"at most {_count(self.max, 'character')}, this has {len(value)}"
            )
        if self.max_bytes is not None and len(value) > self.max_bytes // 4 and len(value.encode()) > self.max_bytes:
            return errors.add(path, FieldCode.TOO_LONG, f"at most {_count(self.max_bytes, 'byte')} of UTF-8")
        if self._matches is not None and self._matches(value) is None:
            return errors.add(path, self.code, self.says or f"must match {self.pattern}")
        return value

    def schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "string"}
        if self.min:
            schema["minLength"] = self.min
        if self.max is not None:
            schema["maxLength"] = self.max
        if self.pattern:
            schema["pattern"] = f"^(?:{self.pattern})$"
        return schema


class Choice(Field):
    """One of a few strings."""

    def __init__(self, values: Iterable[str], **options: Any) -> None:
        super().__init__(**options)
        self.values = tuple(str(value) for value in values)
        self._known = frozenset(self.values)

    def parse(self, value: Any, path: Path, errors: Errors) -> Any:
        if type(value) is not str:
            return errors.add(path, FieldCode.WRONG_TYPE, "must be a string")
        if value not in self._known:
            return errors.add(path, FieldCode.NOT_ALLOWED, f"must be one of {', '.join(self.values)}")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.values)}


class Integer(Field):
    def __init__(self, *, min: int, max: int, **options: Any) -> None:
        super().__init__(**options)
        self.min, self.max = min, max

    def parse(self, value: Any, path: Path, errors: Errors) -> Any:
        if type(value) is not int:  # a bool is no number here
            return errors.add(path, FieldCode.WRONG_TYPE, "must be a whole number")
        if not self.min <= value <= self.max:
            return errors.add(path, FieldCode.OUT_OF_RANGE, f"must be from {self.min} to {self.max}")
        return value

    def from_text(self, text: str, path: Path, errors: Errors) -> Any:
        if not re.fullmatch(r"-?[0-9]{1,16}", text):
            return errors.add(path, FieldCode.WRONG_TYPE, "must be a whole number")
        return self.parse(int(text), path, errors)

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.min, "maximum": self.max}


class Boolean(Field):
    def parse(self, value: Any, path: Path, errors: Errors) -> Any:
        if type(value) is not bool:
            return errors.add(path, FieldCode.WRONG_TYPE, "must be true or false")
        return value

    def from_text(self, text: str, path: Path, errors: Errors) -> Any:
        return self.parse({"true": True, "false": False}.get(text), path, errors)

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


class FreeObject(Field):
    """Any JSON object, up to a size as compact JSON, and optionally with strings only."""

    def __init__(
        self,
        *,
        max_bytes: int | None = None,
        max_keys: int | None = None,
        max_key_length: int | None = None,
        values: Field | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.max_bytes, self.max_keys, self.max_key_length, self.values = max_bytes, max_keys, max_key_length, values

    def parse(self, value: Any, path: Path, errors: Errors) -> Any:
        if type(value) is not dict:
            return errors.add(path, FieldCode.WRONG_TYPE, "must be an object")
        before = errors.total
        if self.max_keys is not None and len(value) > self.max_keys:
            return errors.add(
                path, FieldCode.TOO_MANY, f"at most {_count(self.max_keys, 'key')}, this has {len(value)}"
            )
        if self.max_key_length is not None:
            for key in value:
                if len(key) > self.max_key_length:
                    errors.add(
                        (path, key), FieldCode.TOO_LONG, f"a key has at most {_count(self.max_key_length, 'character')}"
                    )
        if self.values is not None:
            for key, item in value.items():
                self.values.parse(item, (path, key), errors)
        if self.max_bytes is not None and (size := len(msgspec.json.encode(value))) > self.max_bytes:
            errors.add(path, FieldCode.TOO_LONG, f"at most {_count(self.max_bytes, 'byte')} of JSON, this has {size}")
        return value if errors.total == before else INVALID

    def schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "object", "additionalProperties": True}
        if self.values is not None:
            schema["additionalProperties"] = self.values.full_schema()
        if self.max_keys is not None:
            schema["maxProperties"] = self.max_keys
        return schema


class Array(Field):
    """A list of like things. `unique` refuses an equal second one with `conflict`."""

    def __init__(self, item: Field, *, min: int = 0, max: int, unique: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.item, self.min, self.max, self.unique = item, min, max, unique

    def parse(self, value: Any, path: Path, errors: Errors) -> Any:
        if not self.has_right_length(value, path, errors):
            return INVALID
        before = errors.total
        parse = self.item.parse
        parsed = [parse(item, (path, index), errors) for index, item in enumerate(value)]
        if errors.total != before:
            return INVALID
        if self.unique:
            for index, item in enumerate(parsed):
                if item in parsed[:index]:
                    return errors.add((path, index), FieldCode.CONFLICT, "is named twice")
        return parsed

    def has_right_length(self, value: Any, path: Path, errors: Errors) -> bool:
        """The checks that come before the items': for a batch, whose items report each for itself."""
        if type(value) is not list:
            errors.add(path, FieldCode.WRONG_TYPE, "must be an array")
        elif len(value) < self.min:
            errors.add(path, FieldCode.TOO_SHORT, f"needs at least {_count(self.min, 'entry')}")
        elif len(value) > self.max:
            errors.add(path, FieldCode.TOO_MANY, f"at most {self.max} entries, this has {len(value)}")
        else:
            return True
        return False

    def schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "array", "items": self.item.full_schema(), "maxItems": self.max}
        if self.min:
            schema["minItems"] = self.min
        return schema


class Lazy(Array):
    """An array whose items are not parsed here: each gets errors of its own from whoever reads them."""

    def parse(self, value: Any, path: Path, errors: Errors) -> Any:
        return value if self.has_right_length(value, path, errors) else INVALID


class Either(Field):
    """A value of the first field whose JSON type it has, e.g. a string or an object."""

    def __init__(self, by_type: Mapping[type, Field], **options: Any) -> None:
        super().__init__(**options)
        self.by_type = dict(by_type)

    def parse(self, value: Any, path: Path, errors: Errors) -> Any:
        field = self.by_type.get(type(value))
        if field is None:
            names = " or ".join(_JSON_NAMES[kind] for kind in self.by_type)
            return errors.add(path, FieldCode.WRONG_TYPE, f"must be {names}")
        return field.parse(value, path, errors)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [field.full_schema() for field in self.by_type.values()]}


class Shape(Field):
    """An object with known fields; unknown ones are refused.

    `one_of` are groups of names of which exactly one must be there. `check` looks at the parsed fields together
    and reports through `errors`; it is called only when each field for itself is right.
    """

    def __init__(
        self,
        fields: Mapping[str, Field],
        *,
        name: str = "",
        one_of: Sequence[Sequence[str]] = (),
        check: Callable[[dict[str, Any], Path, Errors], None] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.fields, self.name, self.one_of, self.check = dict(fields), name, tuple(map(tuple, one_of)), check
        self._known = f"known here: {', '.join(self.fields) or 'none'}"
        self._required = tuple(key for key, field in self.fields.items() if field.required)
        self._defaults = tuple((key, field.default) for key, field in self.fields.items() if field.has_default)

    def parse(self, value: Any, path: Path, errors: Errors) -> Any:
        if type(value) is not dict:
            return errors.add(path, FieldCode.WRONG_TYPE, "must be an object")
        before = errors.total
        fields = self.fields
        parsed: dict[str, Any] = {}
        for key, item in value.items():
            field = fields.get(key)
            if field is None:
                errors.add((path, key), FieldCode.UNKNOWN_FIELD, self._known)
            elif item is None and field.nullable:
                parsed[key] = None
            else:
                parsed[key] = field.parse(item, (path, key), errors)
        for key in self._required:
            if key not in value:
                errors.add((path, key), FieldCode.REQUIRED, "is required")
        for names in self.one_of:
            given = [name for name in names if name in value]
            if not given:
                errors.add(path, FieldCode.REQUIRED, f"needs one of {', '.join(names)}")
            elif len(given) > 1:
                errors.add((path, given[1]), FieldCode.CONFLICT, f"not together with {given[0]}")
        for key, default in self._defaults:
            if key not in parsed:
                parsed[key] = default() if callable(default) else default
        if errors.total != before:
            return INVALID
        if self.check is not None:
            self.check(parsed, path, errors)
            if errors.total != before:
                return INVALID
        return parsed

    def parse_query(self, lists: Iterable[tuple[str, list[str]]]) -> dict[str, Any]:
        """The same for a query string (`QueryDict.lists()`). Raises Problem validation-failed with `?name` pointers."""
        errors = Errors()
        parsed: dict[str, Any] = {}
        for name, values in lists:
            field = self.fields.get(name)
            if field is None:
                errors.add_query(name, FieldCode.UNKNOWN_FIELD, self._known)
                continue
            if len(values) > 1:
                errors.add_query(name, FieldCode.CONFLICT, "is given twice")
                continue
            found = Errors()
            parsed[name] = field.from_text(values[0], None, found)
            for error in found.items:
                errors.add_query(name, FieldCode(error.code), error.detail)
        for name in self._required:
            if name not in parsed:
                errors.add_query(name, FieldCode.REQUIRED, "is required")
        for key, default in self._defaults:
            parsed.setdefault(key, default() if callable(default) else default)
        errors.raise_if_any()
        return parsed

    def schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {key: field.full_schema() for key, field in self.fields.items()},
            "additionalProperties": False,
        }
        if self._required:
            schema["required"] = list(self._required)
        choices = [{"oneOf": [{"required": [name]} for name in names]} for names in self.one_of]
        if len(choices) == 1:
            schema |= choices[0]
        elif choices:
            schema["allOf"] = choices
        return schema


_JSON_NAMES: dict[type, str] = {
    str: "a string",
    dict: "an object",
    list: "an array",
    int: "a whole number",
    bool: "true or false",
}


def _count(number: int, noun: str) -> str:
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun[:-1]}ies" if noun.endswith("y") else f"{number} {noun}s"


def parse_body(shape: Field, value: Any) -> Any:
    """`value` in the normal form of `shape`. Raises Problem validation-failed with every fault found."""
    errors = Errors()
    parsed = shape.parse(value, None, errors)
    errors.raise_if_any()
    return parsed
