"""Templates: drafts, publishing, rollback; and whether a request's data fits what it names.

Every write locks its template's row, so that versions are numbered without gaps and published one after another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from apps.rest.catalogue import FieldCode
from apps.rest.paths import Path
from apps.rest.problems import Problem
from apps.rest.validation import Errors
from apps.templates.models import Template, TemplateVersion
from apps.templates.schemas import data_faults, path_under, schema_faults, type_at
from apps.templates.versions import VersionInfo, forget_published, info, published, version, version_by_id
from notifier.stages.render import RenderError, missing_variables
from notifier.stages.sources import Problem as SourceProblem
from notifier.stages.sources import compile_check

__all__ = [
    "Draft",
    "VersionInfo",
    "check_data",
    "check_draft",
    "info",
    "publish",
    "published",
    "report",
    "rollback",
    "save_draft",
    "version",
    "version_by_id",
]


@dataclass(frozen=True, slots=True)
class Draft:
    """What a version says. Equal drafts have equal digests."""

    category_key: str
    channels: dict[str, Any] = field(repr=False)
    default_locale: str = "en"
    data_schema: dict[str, Any] = field(default_factory=dict, repr=False)
    sample_data: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def digest(self) -> UUID:
        parts = [self.category_key, self.channels, self.default_locale, self.data_schema, self.sample_data]
        canonical = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return UUID(bytes=hashlib.blake2b(canonical.encode(), digest_size=16).digest())


def check_draft(draft: Draft, errors: Errors) -> None:
    """Report everything that keeps `draft` from being stored, at the places of the API's body."""
    for problem in compile_check(draft.channels, draft.default_locale):
        report(problem, None if problem.path == ("default_locale",) else (None, "channels"), errors)
    faults = schema_faults(draft.data_schema)
    for path, code, detail in faults:
        errors.add(path_under((None, "data_schema"), path), code, detail)
    if not faults and draft.sample_data:
        for path, code, detail in data_faults(draft.data_schema, draft.sample_data, draft.digest.hex):
            errors.add(path_under((None, "sample_data"), path), code, detail)


def report(problem: SourceProblem, at: Path, errors: Errors) -> None:
    """Add a problem of the engine's source checks below `at`."""
    errors.add(path_under(at, problem.path), FieldCode(problem.code), problem.detail)


def save_draft(
    key: str, draft: Draft, *, name: str | None = None, by: str = "", why: str = ""
) -> tuple[Template, TemplateVersion, bool]:
    """Store `draft` as the newest version of `key`; the third value says whether that made a new one.

    Content equal to the newest version makes none. `name` None leaves the template's name. Raises Problem
    validation-failed.
    """
    errors = Errors()
    check_draft(draft, errors)
    errors.raise_if_any()
    with transaction.atomic():
        Template.objects.get_or_create(key=key, defaults={"name": name or ""})
        template = Template.objects.select_for_update().get(key=key)
        if name is not None and name != template.name:
            template.name = name
            template.save(update_fields=["name", "updated_at"])
        newest = template.versions.order_by("-number").first()
        if newest is not None and newest.digest == draft.digest:
            return template, newest, False
        made = _add_version(template, draft, (newest.number if newest else 0) + 1, by=by, why=why)
        template.save(update_fields=["updated_at"])
    return template, made, True


def publish(
    key: str, number: int, *, expected: int | None = None, checks_expected: bool = False
) -> tuple[Template, TemplateVersion]:
    """Make version `number` what `key` says. Publishing what is published changes nothing.

    With `checks_expected`, `expected` must be the published number (None: nothing published yet). Raises Problem:
    not-found, version-conflict, validation-failed (no such version, or an older one).
    """
    with transaction.atomic():
        template = _locked(key)
        chosen = template.versions.filter(number=number).first()
        if chosen is None:
            raise _wrong("version", FieldCode.NOT_FOUND, f"{key} has no version {number}")
        current = template.published
        if current != chosen:
            _expect(current, expected, checks_expected)
            if current is not None and number < current.number:
                detail = f"version {current.number} is published; an older one comes back by rollback"
                raise _wrong("version", FieldCode.NOT_ALLOWED, detail)
            _publish(template, chosen)
    return template, chosen


def rollback(
    key: str, number: int, *, expected: int | None = None, checks_expected: bool = False, by: str = ""
) -> tuple[Template, TemplateVersion]:
    """Publish the content of version `number` again, as a NEW version. Nothing changes when it is published already.

    Raises Problem: not-found, version-conflict, validation-failed (no such version, or one never published).
    """
    with transaction.atomic():
        template = _locked(key)
        old = template.versions.filter(number=number).first()
        if old is None:
            raise _wrong("version", FieldCode.NOT_FOUND, f"{key} has no version {number}")
        if old.published_at is None:
            raise _wrong("version", FieldCode.NOT_PUBLISHED, f"version {number} was never published")
        current = template.published
        if current is not None and current.digest == old.digest:
            return template, current
        _expect(current, expected, checks_expected)
        draft = Draft(old.category_key, old.channels, old.default_locale, old.data_schema, old.sample_data)
        newest = template.versions.aggregate(number=Max("number"))["number"]
        made = _add_version(template, draft, newest + 1, by=by, why=f"rollback to version {number}")
        _publish(template, made)
    return template, made


def check_data(asked: VersionInfo, channels: Iterable[str], data: Mapping[str, Any], at: Path, errors: Errors) -> None:
    """Report what `data` (found at `at` in the request) lacks for these channels, and where it breaks the schema."""
    found: dict[tuple[str | int, ...], tuple[FieldCode, str]] = {}
    for path, code, detail in data_faults(asked.data_schema, data, asked.id):
        found[path] = (code, _needs(asked, path) if code is FieldCode.MISSING_VARIABLE else detail)
    try:
        for missing in missing_variables(asked.compiled, channels, data):
            if not any(missing[: len(path)] == path for path in found):
                found[missing] = (FieldCode.MISSING_VARIABLE, _needs(asked, missing))
    except RenderError as error:
        errors.add(at, FieldCode.INVALID_TEMPLATE, error.detail)
    for path, (code, detail) in found.items():
        errors.add(path_under(at, path), code, detail)


def _needs(asked: VersionInfo, path: tuple[str | int, ...]) -> str:
    """`template order-shipped v7 needs order.eta (string), e.g. "2026-11-25"`."""
    name = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
    kind = type_at(asked.data_schema, path)
    example: Any = asked.sample_data
    for step in path:
        if isinstance(example, list) and example and isinstance(step, int):
            example = example[0]
        else:
            example = example.get(step) if isinstance(example, dict) else None
    text = "" if example is None else json.dumps(example, ensure_ascii=False)
    return (
        f"template {asked.label} needs {name}"
        + (f" ({kind})" if kind else "")
        + (f", e.g. {text[:80]}" if text else "")
    )


def _locked(key: str) -> Template:
    template = Template.objects.select_for_update().filter(key=key).first()
    if template is None:
        raise Problem("not-found")
    return template


def _expect(current: TemplateVersion | None, expected: int | None, checks_expected: bool) -> None:
    number = current.number if current else None
    if checks_expected and number != expected:
        raise Problem("version-conflict", f"published is {number or 'nothing'}, not {expected or 'nothing'}")


def _publish(template: Template, chosen: TemplateVersion) -> None:
    if chosen.published_at is None:
        chosen.published_at = timezone.now()
        chosen.save(update_fields=["published_at"])
    template.published = chosen
    template.save(update_fields=["published", "updated_at"])
    transaction.on_commit(lambda: forget_published(template.key))


def _add_version(template: Template, draft: Draft, number: int, *, by: str, why: str) -> TemplateVersion:
    return TemplateVersion.objects.create(
        template=template,
        number=number,
        category_key=draft.category_key,
        default_locale=draft.default_locale,
        channels=draft.channels,
        data_schema=draft.data_schema,
        sample_data=draft.sample_data,
        digest=draft.digest,
        created_by=by,
        why=why,
    )


def _wrong(name: str, code: FieldCode, detail: str) -> Problem:
    errors = Errors()
    errors.add((None, name), code, detail)
    return Problem("validation-failed", "1 problem; nothing was changed", errors=errors.items)
