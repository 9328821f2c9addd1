"""The first page: how it goes today, and where to look when it does not go well."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone

from apps.console import figures, palette
from apps.console.figures import Hour
from apps.notifications.invariants import Depth
from notifier.message import Mode

CARDS = (
    ("accepted", "Accepted", "outbox"),
    ("sent", "Sent", "send"),
    ("failed", "Failed", "error"),
    ("suppressed", "Suppressed", "block"),
)
SLOW_S, VERY_SLOW_S = 60, 600


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """DASHBOARD_CALLBACK: what console/dashboard.html shows. A fixed number of statements."""
    mode = Mode.TEST if request.GET.get("mode") == Mode.TEST else Mode.LIVE
    may_see = request.user.has_perm("notifications.view_delivery")
    context["mode"], context["other_mode"] = mode.value, (Mode.TEST if mode is Mode.LIVE else Mode.LIVE).value
    context["may_see"] = may_see
    if may_see:
        found = figures.hours(mode)
        context |= {
            "problems": figures.problems(),
            "cards": _cards(found, mode),
            "chart": json.dumps(_chart(found[-figures.HOURS_CHARTED :])),
            "chart_options": json.dumps(CHART_OPTIONS),
            "queues": [_queue(*entry) for entry in figures.queues()],
            "accounts": [_account(line) for line in figures.accounts()],
            "reasons": [_reason(*entry, mode) for entry in figures.reasons(mode)],
            "holds": figures.holds(),
        }
    return context


def _cards(found: Sequence[Hour], mode: Mode) -> list[dict[str, Any]]:
    """Today's figures, beside what they were yesterday up to the same hour."""
    now = timezone.now()
    today, yesterday = figures.midnight(now), figures.midnight(now) - timedelta(days=1)
    same_hour = now - timedelta(days=1)
    cards = []
    for kind, title, icon in CARDS:
        n = figures.total(found, kind, today, now)
        before = figures.total(found, kind, yesterday, same_hour)
        change = f"{100 * (n - before) / before:+.0f} %" if before else ""
        where = {"when": f"{today:%Y-%m-%d}", "mode__exact": mode.value}
        if kind in figures.KINDS:
            where["state__in"] = ",".join(sorted(figures.KINDS[kind]))
        cards.append({"kind": kind, "title": title, "icon": icon, "n": n, "change": change, "link": _deliveries(where)})
    return cards


def _deliveries(where: dict[str, str]) -> str:
    return f"{reverse('admin:notifications_delivery_changelist')}?{urlencode(where)}"


def _chart(found: Sequence[Hour]) -> dict[str, Any]:
    """Nothing is None, not 0: the least length of a bar, which keeps few failures visible, would draw a 0 too."""
    series = (
        ("sent", "Sent", palette.SENT),
        ("failed", "Failed", palette.FAILED),
        ("suppressed", "Suppressed", palette.SUPPRESSED),
    )
    return {
        "labels": [f"{hour.start:%H}:00" for hour in found],
        "datasets": [
            {"label": title, "backgroundColor": colour, "data": [hour.counts[kind] or None for hour in found]}
            for kind, title, colour in series
        ],
    }


# These replace all defaults of the theme, which draws bars of 4 px and no legend.
CHART_OPTIONS: dict[str, Any] = {
    "responsive": True,
    "maintainAspectRatio": False,
    "animation": False,
    "interaction": {"mode": "index", "intersect": False},
    "datasets": {"bar": {"borderRadius": 3, "maxBarThickness": 22, "minBarLength": 2, "categoryPercentage": 0.8}},
    "plugins": {
        "legend": {
            "display": True,
            "position": "bottom",
            "labels": {"color": palette.TEXT, "boxWidth": 10, "boxHeight": 10},
        },
        "tooltip": {"enabled": True},
    },
    "scales": {
        "x": {
            "stacked": True,
            "grid": {"display": False},
            "border": {"display": False},
            "ticks": {"color": palette.TEXT, "maxRotation": 0, "autoSkipPadding": 12},
        },
        "y": {
            "stacked": True,
            "beginAtZero": True,
            "suggestedMax": 10,
            "grid": {"color": palette.GRID},
            "border": {"display": False},
            "ticks": {"color": palette.TEXT, "precision": 0, "maxTicksLimit": 5},
        },
    },
}


def _queue(name: str, depth: Depth, is_cut: bool) -> dict[str, Any]:
    channel, _, lane = name.partition(".")
    where = urlencode({"channel__exact": channel, "lane__exact": lane})
    return {
        "name": name,
        "rows": f"{depth.rows:,}{'+' if is_cut else ''}",
        "is_empty": not depth.rows,
        "oldest": _age(depth.oldest_s),
        "colour": "danger" if depth.oldest_s > VERY_SLOW_S else "warning" if depth.oldest_s > SLOW_S else "success",
        "link": f"{reverse('admin:notifications_pending_changelist')}?{where}",
    }


def _age(seconds: float) -> str:
    if seconds < 1:
        return "none due"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _account(line: figures.AccountLine) -> dict[str, Any]:
    percent = line.failed_percent
    return {
        "account": line.account,
        "link": reverse("admin:providers_provideraccount_change", args=[line.account.pk]),
        "is_active": line.account.status == "active",
        "sent": line.sent,
        "failed": line.failed,
        "percent": "" if percent is None else f"{percent:.1f} %",
    }


def _reason(state: str, reason: str, n: int, mode: Mode) -> dict[str, Any]:
    today = f"{figures.midnight():%Y-%m-%d}"
    where = {"when": today, "mode__exact": mode.value, "state__exact": state, "reason__exact": reason}
    return {"state": state, "reason": reason or "no reason given", "n": n, "link": _deliveries(where)}
