"""Screens: what is said, and which version of it."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import Max, QuerySet
from django.http import HttpRequest, HttpResponse

from apps.rest.admin import Dialog, Inline, ReadOnly, Screen, column, done, link, refused, staff_name, verb
from apps.rest.problems import Problem
from apps.templates import services
from apps.templates.models import Template, TemplateVersion
from apps.templates.previews import preview

STATES = {"published": "success", "draft": "info", "earlier": ""}


def state_of(version: TemplateVersion) -> str:
    """`earlier`: it was published once."""
    if version.template.published_id == version.pk:
        return "published"
    return "draft" if version.published_at is None else "earlier"


class VersionInline(ReadOnly, Inline):
    model = TemplateVersion
    fk_name = "template"
    fields = ("name", "state", "says", "created_by", "why", "created_at", "published_at")
    readonly_fields = fields
    hide_title = True
    ordering = ("-number",)
    per_page = 20

    def get_queryset(self, request: HttpRequest) -> QuerySet[TemplateVersion]:
        rows: QuerySet[TemplateVersion] = super().get_queryset(request)
        return rows.select_related("template")

    @column("version")
    def name(self, version: TemplateVersion) -> str:
        return link("templates_templateversion", version.pk, f"v{version.number}")

    @column("state", label=STATES)
    def state(self, version: TemplateVersion) -> str:
        return state_of(version)

    @column("says")
    def says(self, version: TemplateVersion) -> str:
        return said_in(version)


def said_in(version: TemplateVersion) -> str:
    """`push en, ko; sms en`."""
    return "; ".join(f"{channel} {', '.join(sorted(locales))}" for channel, locales in version.channels.items())


@admin.register(Template)
class TemplateAdmin(ReadOnly, Screen):
    """New wordings come by the API (`PUT /v1/templates/<key>`); which one is sent is decided here too."""

    list_display = ("key", "name", "published_version", "drafts", "category", "says", "updated_at")
    search_fields = ("key", "name")
    list_select_related = ("published",)
    fields = (("key", "name", "published"), ("created_at", "updated_at"))
    inlines = (VersionInline,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Template]:
        rows: QuerySet[Template] = super().get_queryset(request)
        return rows.annotate(newest=Max("versions__number"))

    @column("published", label={"nothing": "warning"})
    def published_version(self, template: Template) -> str:
        return f"v{template.published.number}" if template.published else "nothing"

    @column("draft", label=True)
    def drafts(self, template: Any) -> str:
        published = template.published.number if template.published else 0
        return f"v{template.newest}" if (template.newest or 0) > published else ""

    @column("category")
    def category(self, template: Template) -> str:
        return template.published.category_key if template.published else ""

    @column("says")
    def says(self, template: Template) -> str:
        return said_in(template.published) if template.published else ""


@admin.register(TemplateVersion)
class TemplateVersionAdmin(ReadOnly, Screen):
    list_display = ("label", "state", "category_key", "says", "created_by", "created_at", "published_at")
    list_filter = (("published_at", admin.EmptyFieldListFilter),)
    list_select_related = ("template",)
    search_fields = ("template__key", "category_key")
    ordering = ("-pk",)
    fieldsets: ClassVar[Any] = (
        (None, {"fields": (("template", "number", "state"), ("category_key", "default_locale", "why"))}),
        ("When", {"fields": (("created_by", "created_at", "published_at"),)}),
        ("Source", {"fields": ("channels", "data_schema", "sample_data"), "classes": ["collapse"]}),
    )
    readonly_fields = ("state",)
    change_form_outer_before_template = "console/version.html"
    actions_detail = ("publish", "roll_back")

    @column("version")
    def label(self, version: TemplateVersion) -> str:
        return str(version)

    @column("state", label=STATES)
    def state(self, version: TemplateVersion) -> str:
        return state_of(version)

    @column("says")
    def says(self, version: TemplateVersion) -> str:
        return said_in(version)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        version = TemplateVersion.objects.select_related("template").filter(pk=object_id).first()
        shown = _rendered(version) if version is not None else []
        answer: HttpResponse = super().change_view(
            request, object_id, form_url, {"rendered": shown, **(extra_context or {})}
        )
        return answer

    @verb(
        "Publish",
        explains="From now on this version is what the template says.",
        permission="templates.change_template",
        icon="publish",
    )
    def publish(self, request: HttpRequest, form: Dialog, object_id: str) -> HttpResponse:
        version = TemplateVersion.objects.select_related("template").get(pk=object_id)
        try:
            services.publish(version.template.key, version.number)
        except Problem as problem:
            return refused(request, "templates_templateversion", object_id, problem)
        self.log_change(request, version, "Published.")
        return done(request, "templates_templateversion", object_id, f"{version} is published.")

    @verb(
        "Roll back to this",
        explains="Its content is published again, as a new version.",
        permission="templates.change_template",
        icon="undo",
    )
    def roll_back(self, request: HttpRequest, form: Dialog, object_id: str) -> HttpResponse:
        version = TemplateVersion.objects.select_related("template").get(pk=object_id)
        try:
            _, made = services.rollback(version.template.key, version.number, by=staff_name(request))
        except Problem as problem:
            return refused(request, "templates_templateversion", object_id, problem)
        self.log_change(request, version, f"Rolled back: published as {made.number}.")
        return done(request, "templates_templateversion", made.pk, f"{made} is published.")


def _rendered(version: TemplateVersion) -> list[dict[str, Any]]:
    """Each channel and locale with the version's own sample data: `channel`, `locale`, then what came of it."""
    shown = services.info(version, version.template.key)
    found = []
    for channel, locales in version.channels.items():
        for locale in sorted(locales):
            parts = preview(shown, [channel], locale, version.sample_data)[channel]
            found.append({"channel": channel, **parts, "locale": locale})
    return found
