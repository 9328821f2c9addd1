"""The templates' endpoints: read, draft, publish, roll back, preview."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db.models import Exists, F, OuterRef, Subquery
from django.db.models.functions import Coalesce
from rest_framework.request import Request
from rest_framework.response import Response

from apps.rest.catalogue import FieldCode
from apps.rest.formats import Locale
from apps.rest.pagination import page, page_query
from apps.rest.problems import Problem
from apps.rest.schema import ANY_OBJECT
from apps.rest.validation import Array, Choice, Errors, Field, FreeObject, Integer, Shape, Text
from apps.rest.views import ClientView, created
from apps.templates import services
from apps.templates.models import Template, TemplateVersion
from apps.templates.previews import preview
from notifier.message import Channel

KEY_PATTERN = r"[a-z0-9][a-z0-9_.-]{0,99}"
DATA_LIMIT_BYTES = 256 * 1024

MOST = 2**31 - 1  # what the column holds
_number = Integer(min=1, max=MOST, required=True)
_expected = Integer(min=1, max=MOST, nullable=True)
_choice = Shape({"version": _number, "expected_published": _expected}, name="VersionChoice")


class Key(Text):
    def __init__(self, **options: Any) -> None:
        says = "lower-case letters, digits, dot, dash and underscore, 1 to 100"
        super().__init__(pattern=KEY_PATTERN, says=says, **options)


class TemplateList(ClientView):
    scope = "read"
    queries: ClassVar[dict[str, Shape]] = {"GET": page_query(category=Key(), channel=Choice(Channel))}

    def get(self, request: Request) -> Response:
        """Templates, newest first, each with its published (else its newest) version, without texts."""
        newest = TemplateVersion.objects.filter(template=OuterRef("pk")).order_by("-number").values("pk")[:1]
        rows = Template.objects.annotate(
            published_number=F("published__number"), current=Coalesce("published_id", Subquery(newest))
        )
        current = TemplateVersion.objects.filter(pk=OuterRef("current"))
        if "category" in self.query:
            rows = rows.filter(Exists(current.filter(category_key=self.query["category"])))
        if "channel" in self.query:
            rows = rows.filter(Exists(current.filter(channels__has_key=self.query["channel"])))
        return Response(page(rows, self.query, scope="templates", show=_show_all))


class TemplateDetail(ClientView):
    scope: ClassVar[dict[str, str]] = {"GET": "read", "PUT": "templates"}
    bodies: ClassVar[dict[str, Field]] = {
        "PUT": Shape(
            {
                "name": Text(max=200),
                "category": Key(required=True),
                "channels": FreeObject(required=True),
                "default_locale": Locale(default="en"),
                "data_schema": FreeObject(default=dict),
                "sample_data": FreeObject(max_bytes=DATA_LIMIT_BYTES, default=dict),
            },
            name="Template",
        )
    }
    answers: ClassVar[dict[str, dict[int, dict[str, Any] | None]]] = {"PUT": {200: ANY_OBJECT, 201: ANY_OBJECT}}

    def get(self, request: Request, key: str) -> Response:
        """The template with its newest version, published or not."""
        template = _template(key)
        newest = template.versions.order_by("-number").first()
        if newest is None:
            raise Problem("not-found")
        return Response(_show_whole(template, newest))

    def put(self, request: Request, key: str) -> Response:
        """Store a draft. 201 when it made a version, 200 when the newest one says the same."""
        if Key().parse(key, None, Errors()) != key:
            raise Problem(
                "not-found", "a template key has 1 to 100 lower-case letters, digits, dots, dashes, underscores"
            )
        body = self.body()
        draft = services.Draft(
            category_key=body["category"],
            channels=body["channels"],
            default_locale=body["default_locale"],
            data_schema=body["data_schema"],
            sample_data=body["sample_data"],
        )
        template, version, is_new = services.save_draft(key, draft, name=body.get("name"), by=_author(request))
        return created(_show_whole(template, version), is_new=is_new, location=f"/v1/templates/{key}")


class VersionList(ClientView):
    scope = "read"
    queries: ClassVar[dict[str, Shape]] = {"GET": page_query()}

    def get(self, request: Request, key: str) -> Response:
        """The versions, newest first, without their texts."""
        template = _template(key)
        rows = template.versions.defer("data_schema", "sample_data")

        def show(found: list[TemplateVersion]) -> list[dict[str, Any]]:
            return [_show_version(template, row) for row in found]

        return Response(page(rows, self.query, scope=f"template {template.pk}", show=show, key="number"))


class VersionDetail(ClientView):
    scope = "read"

    def get(self, request: Request, key: str, number: int) -> Response:
        template = _template(key)
        found = template.versions.filter(number=number).first() if number <= MOST else None
        if found is None:
            raise Problem("not-found")
        return Response(_show_version(template, found) | _texts(found))


class Publish(ClientView):
    scope = "templates"
    bodies: ClassVar[dict[str, Field]] = {"POST": _choice}

    def post(self, request: Request, key: str) -> Response:
        body = self.body()
        template, version = services.publish(
            key,
            body["version"],
            expected=body.get("expected_published"),
            checks_expected="expected_published" in body,
        )
        return Response(_show_whole(template, version))


class Rollback(ClientView):
    scope = "templates"
    bodies: ClassVar[dict[str, Field]] = {"POST": _choice}

    def post(self, request: Request, key: str) -> Response:
        body = self.body()
        template, version = services.rollback(
            key,
            body["version"],
            expected=body.get("expected_published"),
            checks_expected="expected_published" in body,
            by=_author(request),
        )
        return Response(_show_whole(template, version))


class Preview(ClientView):
    scope = "read"
    bodies: ClassVar[dict[str, Field]] = {
        "POST": Shape(
            {
                "version": Integer(min=1, max=MOST),
                "locale": Locale(),
                "channels": Array(Choice(Channel), min=1, max=len(Channel), unique=True),
                "data": FreeObject(max_bytes=DATA_LIMIT_BYTES),
            },
            name="TemplatePreview",
        )
    }

    def post(self, request: Request, key: str) -> Response:
        """Any version rendered (default: the newest) with `data` (default: its sample data). Stores nothing."""
        template, body = _template(key), self.body()
        rows = template.versions.order_by("-number")
        row = (rows.filter(number=body["version"]) if "version" in body else rows).first()
        errors = Errors()
        if row is None:
            errors.add((None, "version"), FieldCode.NOT_FOUND, f"{key} has no such version")
            errors.raise_if_any()
            raise Problem("not-found")
        shown = services.info(row, key)
        data = body.get("data", row.sample_data)
        channels = body.get("channels") or [channel for channel in Channel if channel in row.channels]
        locale = body.get("locale", row.default_locale)
        services.check_data(shown, channels, data, (None, "data"), errors)
        return Response(
            {
                "template": {"key": key, "version": row.number},
                "rendered": preview(shown, channels, locale, data),
                "missing": [
                    {"pointer": error.pointer, "code": error.code, "detail": error.detail} for error in errors.items
                ],
            }
        )


def _author(request: Request) -> str:
    key: str = request.auth.app_key  # type: ignore[union-attr]  # a Caller
    return key


def _template(key: str) -> Template:
    template = Template.objects.select_related("published").filter(key=key).first()
    if template is None:
        raise Problem("not-found")
    return template


def _show_all(templates: list[Any]) -> list[dict[str, Any]]:
    versions = TemplateVersion.objects.defer("data_schema", "sample_data").in_bulk([each.current for each in templates])
    return [
        _show(each, versions[each.current], each.published_number) for each in templates if each.current in versions
    ]


def _show_whole(template: Template, version: TemplateVersion) -> dict[str, Any]:
    number = template.published.number if template.published else None
    return _show(template, version, number) | _texts(version)


def _show(template: Template, version: TemplateVersion, published_number: int | None) -> dict[str, Any]:
    return {
        "key": template.key,
        "name": template.name,
        "published_version": published_number,
        "created_at": template.created_at,
        "updated_at": template.updated_at,
        **_show_version(template, version),
    }


def _show_version(template: Template, version: TemplateVersion) -> dict[str, Any]:
    if template.published_id == version.pk:
        status = "published"
    else:
        status = "draft" if version.published_at is None else "replaced"
    return {
        "version": version.number,
        "status": status,
        "category": version.category_key,
        "default_locale": version.default_locale,
        "locales": {channel: sorted(locales) for channel, locales in version.channels.items()},
        "created_by": version.created_by,
        "why": version.why,
        "version_created_at": version.created_at,
        "published_at": version.published_at,
    }


def _texts(version: TemplateVersion) -> dict[str, Any]:
    return {"channels": version.channels, "data_schema": version.data_schema, "sample_data": version.sample_data}
