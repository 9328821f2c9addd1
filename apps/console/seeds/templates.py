"""The demo's templates, in English and Korean; the bodies of their mails are the `.liquid` files beside this one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apps.templates import services
from apps.templates.models import Template

HERE = Path(__file__).parent
BRAND = {"en": "Juniper", "ko": "주니퍼"}
FOOTER = {
    "en": "Juniper is a shop that exists only in this demo. No parcel was ever sent.",
    "ko": "주니퍼는 이 데모에만 있는 가게입니다. 실제로 배송되는 상품은 없습니다.",
}


@dataclass(frozen=True, slots=True)
class Seed:
    """One template. `texts` by locale: `subject`, `preheader`, `title`, `body` and `sms`."""

    name: str
    category: str
    accent: str
    texts: dict[str, dict[str, str]]
    data_schema: dict[str, Any]
    sample_data: dict[str, Any] = field(repr=False)


SEEDS: dict[str, Seed] = {
    "order-shipped": Seed(
        name="Order shipped",
        category="orders",
        accent="#1f6b4f",
        texts={
            "en": {
                "subject": "Your order {{ order.id }} is on its way",
                "preheader": 'It arrives on {{ order.eta | date: "%A, %-d %B" }}.',
                "title": "On its way to you",
                "body": 'Order {{ order.id }} arrives on {{ order.eta | date: "%A, %-d %B" }}.',
                "sms": 'Juniper: order {{ order.id }} is on its way and arrives on {{ order.eta | date: "%-d %b" }}.'
                "{% if order.url %} {{ order.url }}{% endif %}",
            },
            "ko": {
                "subject": "주문 {{ order.id }} 상품이 출발했습니다",
                "preheader": '{{ order.eta | date: "%-m월 %-d일" }} 도착 예정입니다.',
                "title": "상품이 출발했어요",
                "body": '주문 {{ order.id }}, {{ order.eta | date: "%-m월 %-d일" }} 도착 예정입니다.',
                "sms": "[주니퍼] 주문 {{ order.id }} 상품이 출발했습니다. "
                '{{ order.eta | date: "%-m월 %-d일" }} 도착 예정.'
                "{% if order.url %} {{ order.url }}{% endif %}",
            },
        },
        data_schema={
            "type": "object",
            "required": ["order"],
            "properties": {
                "order": {
                    "type": "object",
                    "required": ["id", "eta"],
                    "properties": {
                        "id": {"type": "string", "maxLength": 40},
                        "eta": {"type": "string", "description": "A date, such as 2026-11-25"},
                        "name": {"type": "string", "maxLength": 100},
                        "url": {"type": "string", "maxLength": 500},
                        "items": {
                            "type": "array",
                            "maxItems": 100,
                            "items": {
                                "type": "object",
                                "required": ["name"],
                                "properties": {
                                    "name": {"type": "string", "maxLength": 200},
                                    "quantity": {"type": "integer", "minimum": 1},
                                },
                            },
                        },
                    },
                }
            },
        },
        sample_data={
            "order": {
                "id": "A-1001",
                "eta": "2026-11-25",
                "name": "Ada",
                "url": "https://juniper.example.com/o/A-1001",
                "items": [
                    {"name": "Olive oil, first pressing", "quantity": 2},
                    {"name": "Walnut bread", "quantity": 1},
                ],
            }
        },
    ),
    "login-code": Seed(
        name="Sign-in code",
        category="security",
        accent="#3657a8",
        texts={
            "en": {
                "subject": "{{ code }} is your Juniper code",
                "preheader": "Valid for {{ minutes | default: 10 }} minutes.",
                "title": "Your Juniper code",
                "body": "{{ code }} is valid for {{ minutes | default: 10 }} minutes. Never share it.",
                "sms": "{{ code }} is your Juniper code. Valid {{ minutes | default: 10 }} minutes. Never share it.",
            },
            "ko": {
                "subject": "주니퍼 인증번호 {{ code }}",
                "preheader": "{{ minutes | default: 10 }}분 동안 사용할 수 있습니다.",
                "title": "주니퍼 인증번호",
                "body": "인증번호 {{ code }} ({{ minutes | default: 10 }}분 동안 유효). 다른 사람에게 알리지 마세요.",
                "sms": "[주니퍼] 인증번호 {{ code }} ({{ minutes | default: 10 }}분간 유효). 타인에게 알리지 마세요.",
            },
        },
        data_schema={
            "type": "object",
            "required": ["code"],
            "properties": {
                "code": {"type": "string", "minLength": 4, "maxLength": 12},
                "minutes": {"type": "integer", "minimum": 1, "maximum": 60},
            },
        },
        sample_data={"code": "493027", "minutes": 10},
    ),
    "weekly-offers": Seed(
        name="Weekly offers",
        category="offers",
        accent="#b4501f",
        texts={
            "en": {
                "subject": '{{ headline | default: "Fresh this week" }}: {{ offers.first.name }} and more',
                "preheader": "{{ offers.first.name }} for {{ offers.first.price }}.",
                "title": '{{ headline | default: "Fresh this week" }}',
                "body": "{{ offers.first.name }} for {{ offers.first.price }}, and more.",
                "sms": "Juniper: {{ offers.first.name }} for {{ offers.first.price }} this week. Reply STOP to end.",
            },
            "ko": {
                "subject": '(광고) {{ headline | default: "이번 주의 새로운 소식" }}: {{ offers.first.name }} 외',
                "preheader": "{{ offers.first.name }} {{ offers.first.price }}",
                "title": '(광고) {{ headline | default: "이번 주의 새로운 소식" }}',
                "body": "{{ offers.first.name }} {{ offers.first.price }} 외 여러 상품을 만나 보세요.",
                "sms": "(광고)[주니퍼] {{ offers.first.name }} {{ offers.first.price }}. 무료수신거부: STOP 회신",
            },
        },
        data_schema={
            "type": "object",
            "required": ["offers"],
            "properties": {
                "headline": {"type": "string", "maxLength": 80},
                "until": {"type": "string", "maxLength": 40},
                "url": {"type": "string", "maxLength": 500},
                "offers": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 20,
                    "items": {
                        "type": "object",
                        "required": ["name", "price"],
                        "properties": {
                            "name": {"type": "string", "maxLength": 100},
                            "note": {"type": "string", "maxLength": 200},
                            "price": {"type": "string", "maxLength": 20},
                            "was": {"type": "string", "maxLength": 20},
                        },
                    },
                },
            },
        },
        sample_data={
            "offers": [
                {"name": "Blood oranges", "note": "From Sicily, 2 kg", "price": "€6.90", "was": "€8.50"},
                {"name": "Sheep's cheese", "note": "Aged for six months", "price": "€11.00"},
                {"name": "Chestnut honey", "price": "€9.40", "was": "€10.80"},
            ]
        },
    ),
}


def seed_templates() -> None:
    """Store and publish what is not there; a template that is there stays as its authors left it."""
    for key, seed in SEEDS.items():
        if Template.objects.filter(key=key).exists():
            continue
        draft = services.Draft(seed.category, channels(key, seed), "en", seed.data_schema, seed.sample_data)
        _, version, _ = services.save_draft(key, draft, name=seed.name, by="seed")
        services.publish(key, version.number)


def channels(key: str, seed: Seed) -> dict[str, dict[str, dict[str, str]]]:
    return {
        "push": {locale: {"title": text["title"], "body": text["body"]} for locale, text in seed.texts.items()},
        "sms": {locale: {"text": text["sms"]} for locale, text in seed.texts.items()},
        "email": {
            locale: {"subject": text["subject"], "html": _html(key, seed, locale)}
            for locale, text in seed.texts.items()
        },
    }


def _html(key: str, seed: Seed, locale: str) -> str:
    """The mail's body in the layout that all three share."""
    html = (HERE / "layout.liquid").read_text()
    for name, value in {
        "lang": locale,
        "title": seed.texts[locale]["title"],
        "preheader": seed.texts[locale]["preheader"],
        "accent": seed.accent,
        "brand": BRAND[locale],
        "footer": FOOTER[locale],
        "content": (HERE / f"{key}.{locale}.liquid").read_text(),
    }.items():
        html = html.replace(f"[[{name}]]", value)
    return html
