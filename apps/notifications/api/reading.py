"""GET: what became of notifications and deliveries. Only the caller's own, of the key's mode."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from rest_framework.request import Request
from rest_framework.response import Response

from apps.notifications import shapes, shown
from apps.notifications.api.sending import Send, caller_of
from apps.notifications.selectors.deliveries import list_deliveries, one_delivery
from apps.notifications.selectors.notifications import list_notifications, one_notification
from apps.notifications.selectors.walk import Owner
from apps.rest.formats import Id, Time
from apps.rest.pagination import MAX_LIMIT, page_query
from apps.rest.schema import page_of
from apps.rest.validation import Choice, Field, Shape, Text
from apps.rest.views import ClientView
from notifier.message import Channel

_TIMES: dict[str, Field] = {"from": Time(), "to": Time()}
_USER_ID = Text(min=1, max=128)


def owner_of(request: Request) -> Owner:
    caller = caller_of(request)
    return Owner(caller.client_id, caller.mode.value)


class Notifications(Send):
    scope: ClassVar[str | dict[str, str]] = {"POST": "send", "GET": "read"}
    queries: ClassVar[dict[str, Shape]] = {
        "GET": page_query(
            event_id=shapes.EVENT_ID,
            reference=Text(min=1, max=200),
            user_id=_USER_ID,
            template=shapes.TEMPLATE_KEY,
            category=Text(min=1, max=100),
            status=Choice(shown.STATUSES),
            **_TIMES,
        )
    }
    answers: ClassVar[dict[str, dict[int, dict[str, Any] | None]]] = {
        **Send.answers,
        "GET": {200: page_of(shown.LISTED_NOTIFICATION_OUT)},
    }

    def get(self, request: Request) -> Response:
        """Your notifications, newest first: `from` (included) to `to` (excluded), by the time they were accepted.

        Without `from` the last 7 days; an `event_id` is looked for in all that is kept. A page may hold fewer
        than `limit`, even none, and still have a `next_cursor`: go on until that is null.
        """
        found, following = list_notifications(owner_of(request), self.query)
        return Response({"data": [shown.show_notification(row) for row in found], "next_cursor": following})


class OneNotification(ClientView):
    scope = "read"
    answers: ClassVar[dict[str, dict[int, dict[str, Any] | None]]] = {"GET": {200: shown.NOTIFICATION_OUT}}

    def get(self, request: Request, id: UUID) -> Response:
        """One notification with the number of its deliveries by state, and the first 100 of them.

        `next_cursor` is for `GET /v1/deliveries?notification_id=<id>&cursor=...`.
        """
        owner = owner_of(request)
        row = one_notification(owner, id)
        deliveries, following = list_deliveries(owner, {"notification_id": id, "limit": MAX_LIMIT})
        return Response(
            shown.show_notification(row)
            | {
                "counts": row["counts"] or {},
                "deliveries": [shown.show_delivery(delivery) for delivery in deliveries],
                "next_cursor": following,
            }
        )


class Deliveries(ClientView):
    scope = "read"
    queries: ClassVar[dict[str, Shape]] = {
        "GET": page_query(
            notification_id=Id(),
            user_id=_USER_ID,
            channel=Choice(Channel),
            state=Choice(shown.STATES),
            reason=Text(min=1, max=40),
            provider=Text(min=1, max=60),
            **_TIMES,
        )
    }
    answers: ClassVar[dict[str, dict[int, dict[str, Any] | None]]] = {"GET": {200: page_of(shown.LISTED_DELIVERY_OUT)}}

    def get(self, request: Request) -> Response:
        """Single messages, those of your newest notifications first: `from` (included) to `to` (excluded).

        Without `from` the last 7 days; a `notification_id` is looked for in all that is kept. A page may hold
        fewer than `limit`, even none, and still have a `next_cursor`: go on until that is null.
        """
        found, following = list_deliveries(owner_of(request), self.query)
        return Response({"data": [shown.show_delivery(row) for row in found], "next_cursor": following})


class OneDelivery(ClientView):
    scope = "read"
    answers: ClassVar[dict[str, dict[int, dict[str, Any] | None]]] = {"GET": {200: shown.DELIVERY_OUT}}

    def get(self, request: Request, id: UUID) -> Response:
        """Why it was sent, or not: each gate it passed, each try, everything that came back.

        An email address or phone number is masked without the scope `users`; a device's token always is.
        """
        row = one_delivery(owner_of(request), id)
        is_address_shown = "users" in caller_of(request).client.scopes
        return Response(shown.show_whole_delivery(row, is_address_shown=is_address_shown))
