"""What a test of notifications needs to exist, made through the services."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import connection

from apps.notifications.models import Delivery, Pending
from apps.notifications.services import layout
from apps.people import services as people
from apps.people.devices import DEVICE
from apps.people.models import Category
from apps.providers.models import ProviderAccount
from apps.rest.validation import parse_body
from apps.templates import services as templates
from notifier.message import Mode
from tests.apps.rest.callers import Api, make_api

EVERYTHING: dict[str, Any] = {
    "is_verified": True,
    "may_send_inline": True,
    "lanes": ["critical", "normal", "bulk"],
    "recipients_per_day": 10_000_000,
    "senders": ["Shop <shop@example.com>"],
}


@dataclass
class World:
    api: Api

    @classmethod
    def make(cls, mode: Mode) -> World:
        for key, options in {
            "orders": {},
            "security": {"is_mandatory": True, "lane": "critical"},
            "offers": {"is_marketing": True, "is_on_by_default": False, "lane": "bulk"},
            "news": {"is_marketing": True, "lane": "bulk"},
        }.items():
            Category.objects.update_or_create(key=key, defaults={"name": key, **options})
        layout.categories(fresh=True)
        for key, category in {"shipped": "orders", "code": "security", "weekly": "offers", "letter": "news"}.items():
            publish(key, category)
        ProviderAccount.objects.get_or_create(
            name="mail-main",
            kind="smtp",
            defaults={"settings": {"host": "127.0.0.1", "port": 1, "sender": "a@b.example"}},
        )
        person("ada", email="delivered+ada@sandbox.invalid", phone="+15005550006")
        device("ada", "sandbox-ok-ada")
        person("bob", email="bob@example.com")
        person("eve")
        return cls(make_api("shop", mode, **EVERYTHING))

    def send(self, *to: str | dict[str, Any], **fields: Any) -> Any:
        entries = [{"user_id": one} if isinstance(one, str) else one for one in to]
        body = {"template": "shipped", "data": {"order": "A-1"}, "to": entries, **fields}
        return self.api.post("/v1/notifications", {name: value for name, value in body.items() if value is not None})


def publish(key: str, category: str, **channels: Any) -> int:
    written = channels or {
        "push": {"en": {"title": "Order", "body": "{{ order }} is on its way"}},
        "sms": {"en": {"text": "{{ order }} is on its way"}},
        "email": {"en": {"subject": "Order {{ order }}", "text": "It is on its way"}},
    }
    _, made, _ = templates.save_draft(key, templates.Draft(category, written), name=key, by="test")
    templates.publish(key, made.number)
    return made.number


def person(id: str, **values: Any) -> None:
    people.put_user(id, values)


def device(user: str, token: str, platform: str = "android") -> UUID:
    values = parse_body(DEVICE, {"platform": platform, "token": token})
    found, _ = people.register_device(user, values)
    return UUID(str(found.pk))


def deliveries(notification: str) -> list[Delivery]:
    return list(Delivery.objects.filter(notification_id=notification).order_by("channel", "recipient_no"))


def states(notification: str) -> list[tuple[str, str, str]]:
    return [(d.channel, d.state, d.reason) for d in deliveries(notification)]


def pending(notification: str) -> list[Pending]:
    return list(Pending.objects.filter(id__in=[d.id for d in deliveries(notification)]))


def run(sql: str, *values: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return list(cursor.fetchall()) if cursor.description else []
