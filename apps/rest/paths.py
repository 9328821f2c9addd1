"""Where in a body: a linked path while parsing, a JSON Pointer (RFC 6901) once there is something to say."""

from __future__ import annotations

from typing import Any

# The parent's path and the last step; None is the whole body. Building a tuple per step costs a tenth of
# building a string, and almost every path is thrown away unused.
Path = tuple[Any, str | int] | None


def pointer_to(path: Path) -> str:
    """`/items/1/data`; "" for the whole body. Text that JSON could not carry is shown as U+FFFD."""
    steps: list[str] = []
    while path is not None:
        path, step = path
        steps.append(str(step).replace("~", "~0").replace("/", "~1"))
    text = "".join(f"/{step}" for step in reversed(steps))
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
