"""What does a notification name? Frozen versions, read through a cache of this process.

A version never changes, so one found by its id is kept until others push it out. Which version of a key is
published does change, and is read again after 1.5 s: publishing is live everywhere in less than 2 s.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Generic, TypeVar

from apps.templates.models import Template, TemplateVersion
from notifier.stages.render import Compiled, compile_version

FRESH_S = 1.5
KEPT_KEYS = 4096  # known and unknown ones: callers choose the keys they ask for
KEPT_VERSIONS = 1024

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One version as every other room sees it."""

    id: int
    key: str
    number: int
    category_key: str
    default_locale: str
    channels: Mapping[str, Mapping[str, Mapping[str, str]]] = field(repr=False)
    data_schema: Mapping[str, Any] = field(repr=False)
    sample_data: Mapping[str, Any] = field(repr=False)

    @property
    def label(self) -> str:
        """For people: `order-shipped v7`."""
        return f"{self.key} v{self.number}"

    @property
    def compiled(self) -> Compiled:
        return compile_version(self.id, self.channels, self.default_locale)


class Kept(Generic[K, V]):
    """The last `size` values asked for, each for `fresh_s` seconds."""

    def __init__(self, size: int, fresh_s: float) -> None:
        self._size, self._fresh_s = size, fresh_s
        self._values: OrderedDict[K, tuple[float, V]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: K, read: Callable[[], V]) -> V:
        found = self._values.get(key)
        if found is not None and time.monotonic() < found[0]:
            return found[1]
        until = time.monotonic() + self._fresh_s  # counts from before the read
        value = read()
        with self._lock:
            self._values[key] = (until, value)
            self._values.move_to_end(key)
            while len(self._values) > self._size:
                self._values.popitem(last=False)
        return value

    def forget(self, key: K) -> None:
        with self._lock:
            self._values.pop(key, None)

    def clear(self) -> None:
        with self._lock:
            self._values.clear()


_published: Kept[str, int | None] = Kept(KEPT_KEYS, FRESH_S)
_numbered: Kept[tuple[str, int], int | None] = Kept(KEPT_KEYS, FRESH_S)
_versions: Kept[int, VersionInfo] = Kept(KEPT_VERSIONS, float("inf"))


def published(key: str) -> VersionInfo | None:
    """What `key` says now, at most 1.5 s old; None when there is no such template or nothing of it is published."""
    found = _published.get(key, lambda: Template.objects.filter(key=key).values_list("published_id", flat=True).first())
    return version_by_id(found) if found is not None else None


def version(key: str, number: int) -> VersionInfo | None:
    """Version `number` of `key`, published or not; None when there is none."""
    rows = TemplateVersion.objects.filter(template__key=key, number=number)
    found = _numbered.get((key, number), lambda: rows.values_list("id", flat=True).first())
    return version_by_id(found) if found is not None else None


def version_by_id(id: int) -> VersionInfo:
    """Raises LookupError when there is none."""
    return _versions.get(id, lambda: _read(id))


def forget_published(key: str) -> None:
    """Read the key again at the next use: for the process that published it."""
    _published.forget(key)


def forget_all() -> None:
    """For tests, which roll the tables back."""
    for kept in (_published, _numbered, _versions):
        kept.clear()


def info(row: TemplateVersion, key: str) -> VersionInfo:
    return VersionInfo(
        id=row.pk,
        key=key,
        number=row.number,
        category_key=row.category_key,
        default_locale=row.default_locale,
        channels=row.channels,
        data_schema=row.data_schema,
        sample_data=row.sample_data,
    )


def _read(id: int) -> VersionInfo:
    row = TemplateVersion.objects.select_related("template").filter(pk=id).first()
    if row is None:
        raise LookupError(f"there is no template version {id}")
    return info(row, row.template.key)
