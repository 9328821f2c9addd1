"""Whether decoded JSON has the types that a vendor's reference names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

STRINGS = object()  # an object whose values are all strings

Shape = Any  # a type, STRINGS, {field: shape}, or [shape] for a list


def misfits(value: Any, shape: Shape, path: str) -> Iterator[tuple[str, Shape]]:
    """Each place that does not fit, with the shape wanted there. An absent or null field always fits."""
    if value is None:
        return
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            yield path, shape
            return
        for name, inner in shape.items():
            if name in value:
                yield from misfits(value[name], inner, f"{path}.{name}" if path else name)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield path, shape
            return
        for position, item in enumerate(value):
            if item is None:
                yield f"{path}.{position}", shape[0]
            yield from misfits(item, shape[0], f"{path}.{position}")
    elif shape is STRINGS:
        if not isinstance(value, dict):
            yield path, shape
            return
        for name, item in value.items():
            if not isinstance(item, str):
                yield f"{path}[{name}].value", str
    elif not isinstance(value, shape) or (isinstance(value, bool) and shape is not bool):
        yield path, shape
