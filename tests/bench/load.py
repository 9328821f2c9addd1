"""What is sent: to whom, through which templates, in which requests. The same for every side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

PEOPLE = 10_000
CONNECTED = 500  # further people, with a mailbox, a phone number and an iOS device each
ITEMS, RECIPIENTS = 10, 100  # of one batch
EMAIL = "person-{}@people.bench.example.com"

_PUSH = {
    "title": "Hello {{ name }}, order {{ order.id }} is on its way",
    "body": '{% if order.eta %}It arrives on {{ order.eta | date: "%A, %-d %B" }}.{% endif %}',
}
_ROWS = "\n".join(f"<tr><td>Row {n}</td><td>{{{{ order.line{n} }}}}</td></tr>" for n in range(18))
MAIL = {
    "subject": "Order {{ order.id }} is on its way to {{ name }}",
    "html": f"""<!doctype html>
<html><body style="font-family:sans-serif">
<h1>Hello {{{{ name }}}}</h1>
<p>Order {{{{ order.id }}}} is on its way and arrives on {{{{ order.eta }}}}.</p>
<table>
{_ROWS}
</table>
{{% if order.note %}}<p>Note: {{{{ order.note }}}}</p>{{% endif %}}
<p>Thank you,</p>
<p>the shop</p>
</body></html>""",
    "text": "Hello {{ name }}, order {{ order.id }} is on its way and arrives on {{ order.eta }}. Thank you, the shop",
}
"""Thirty lines, in what Liquid and Django's own templates have in common."""
_SMS = {"text": "Hello {{ name }}, order {{ order.id }} is on its way and arrives on {{ order.eta }}."}

TEMPLATES: dict[str, tuple[str, dict[str, Any]]] = {
    "bench-bulk": ("news", {"push": {"en": _PUSH}}),
    "bench-normal": ("orders", {"push": {"en": _PUSH}}),
    "bench-critical": ("security", {"push": {"en": _PUSH}}),
    "bench-mail": ("news", {"email": {"en": MAIL}}),
    "bench-sms": ("orders", {"sms": {"en": _SMS}}),
    "bench-letter": ("orders", {"email": {"en": MAIL}}),
}
DATA = {"order": {"id": "A-1001", "eta": "2026-11-25", **{f"line{n}": f"value {n}" for n in range(18)}}}


def person(number: int) -> str:
    return f"bench-{number % PEOPLE}"


def recipient(number: int) -> dict[str, Any]:
    """Everybody's text is another one: nothing can be rendered once for all."""
    return {"user_id": person(number), "data": {"name": f"Person {number}"}}


def connected(number: int) -> str:
    return f"bench-connected-{number % CONNECTED}"


def to_connected(number: int) -> dict[str, Any]:
    return recipient(number) | {"user_id": connected(number)}


def batches(deliveries: int, template: str = "bench-bulk") -> Iterator[dict[str, Any]]:
    """Bodies of POST /v1/notifications/batch, `ITEMS` x `RECIPIENTS` each."""
    run = uuid4().hex
    for start in range(0, deliveries, ITEMS * RECIPIENTS):
        yield {
            "items": [
                {
                    "event_id": f"{run}-{first}",
                    "template": template,
                    "to": [recipient(number) for number in range(first, first + RECIPIENTS)],
                    "data": DATA,
                }
                for first in range(start, start + ITEMS * RECIPIENTS, RECIPIENTS)
            ]
        }


def singles(
    count: int, template: str = "bench-normal", to: Callable[[int], dict[str, Any]] = recipient
) -> Iterator[dict[str, Any]]:
    """Bodies of POST /v1/notifications, one recipient each."""
    run = uuid4().hex
    for number in range(count):
        yield {"event_id": f"{run}-{number}", "template": template, "to": [to(number)], "data": DATA}
