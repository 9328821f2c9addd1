"""The admin site's frame: its sidebar, in the order in which people look for things."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import reverse

GROUPS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "What happened",
        (
            ("Notifications", "notifications.notification", "outbox"),
            ("Deliveries", "notifications.delivery", "mark_email_read"),
            ("Attempts", "notifications.attempt", "replay"),
            ("Events", "notifications.event", "bolt"),
            ("Receipt inbox", "notifications.receiptinbox", "inbox"),
        ),
    ),
    (
        "Who receives",
        (
            ("People", "people.user", "person"),
            ("Addresses", "people.address", "alternate_email"),
            ("Devices", "people.device", "smartphone"),
            ("Preferences", "people.preference", "tune"),
            ("Suppressions", "people.suppression", "block"),
            ("Changes", "people.change", "history"),
        ),
    ),
    (
        "What is said",
        (
            ("Templates", "templates.template", "article"),
            ("Versions", "templates.templateversion", "layers"),
            ("Categories", "people.category", "category"),
        ),
    ),
    (
        "Who sends, through whom",
        (
            ("Clients", "clients.client", "apps"),
            ("Keys", "clients.appkey", "key"),
            ("Provider accounts", "providers.provideraccount", "cell_tower"),
            ("Holds", "notifications.hold", "pause_circle"),
        ),
    ),
    (
        "Under the hood",
        (
            ("Pending", "notifications.pending", "hourglass_top"),
            ("To lay out", "notifications.expansion", "unfold_more"),
            ("Tallies", "notifications.tally", "calculate"),
            ("Heartbeats", "notifications.heartbeat", "monitor_heart"),
            ("Schedules", "django_celery_beat.periodictask", "schedule"),
        ),
    ),
    (
        "Staff",
        (
            ("Users", "auth.user", "shield_person"),
            ("Groups", "auth.group", "groups"),
        ),
    ),
)
FOLDED = frozenset({"Under the hood", "Staff"})


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """The sidebar: what this member of staff may see."""
    dashboard = {"title": "Dashboard", "icon": "dashboard", "link": reverse("admin:index")}
    groups: list[dict[str, Any]] = [{"items": [dashboard]}]
    for title, entries in GROUPS:
        items = [
            {"title": name, "icon": icon, "link": reverse(f"admin:{model.replace('.', '_')}_changelist")}
            for name, model, icon in entries
            if _may_see(request, model)
        ]
        if items:
            groups.append({"title": title, "separator": True, "collapsible": title in FOLDED, "items": items})
    return groups


def _may_see(request: HttpRequest, model: str) -> bool:
    app, name = model.split(".")
    return request.user.has_perm(f"{app}.view_{name}") or request.user.has_perm(f"{app}.change_{name}")


def stylesheet(request: HttpRequest) -> str:
    return static("console/console.css")


def icon(request: HttpRequest) -> str:
    return static("console/icon.svg")


def environment(request: HttpRequest) -> list[str] | None:
    """The badge beside the name of who is logged in: only a demo has one."""
    return ["Demo", "info"] if settings.DEMO else None
