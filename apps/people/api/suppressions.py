"""/v1/suppressions"""

from __future__ import annotations

from uuid import UUID

from rest_framework.request import Request
from rest_framework.response import Response

from apps.people import services
from apps.people.hashing import hash_address
from apps.people.models import Category, Suppression, SuppressionReason
from apps.people.shapes import SUPPRESSION, AnyAddress
from apps.people.shown import SUPPRESSION_OUT, show_suppression
from apps.rest.catalogue import FieldCode
from apps.rest.pagination import page, page_query
from apps.rest.problems import FieldError, invalid
from apps.rest.schema import page_of
from apps.rest.validation import Choice
from apps.rest.views import ClientView, created
from notifier.message import Channel


class Suppressions(ClientView):
    scope = "users"
    queries = {"GET": page_query(channel=Choice(Channel), address=AnyAddress(), reason=Choice(SuppressionReason))}
    bodies = {"POST": SUPPRESSION}
    answers = {"GET": {200: page_of(SUPPRESSION_OUT)}, "POST": {200: SUPPRESSION_OUT, 201: SUPPRESSION_OUT}}

    def get(self, request: Request) -> Response:
        rows = Suppression.objects.select_related("category")
        for name in ("channel", "reason"):
            if name in self.query:
                rows = rows.filter(**{name: self.query[name]})
        if "address" in self.query:
            channel = Channel.EMAIL if "@" in self.query["address"] else Channel.SMS
            rows = rows.filter(address_hash=hash_address(channel, self.query["address"]))
        return Response(
            page(rows, self.query, scope="suppressions", show=lambda found: [show_suppression(row) for row in found])
        )

    def post(self, request: Request) -> Response:
        wanted = self.body()
        category = None
        if wanted.get("category") is not None:
            category = Category.objects.filter(key=wanted["category"]).first()
            if category is None:
                raise invalid([FieldError("/category", FieldCode.NOT_FOUND, "there is no such category")])
        entry, is_new = services.suppress(
            wanted["channel"],
            wanted["address"],
            wanted["reason"],
            category,
            source=f"api:{self.caller.client.name}",
            note=wanted.get("note") or "",
            expires_at=wanted.get("expires_at"),
        )
        return created(show_suppression(entry), is_new=is_new)


class OneSuppression(ClientView):
    scope = "users"

    def delete(self, request: Request, suppression_id: UUID) -> Response:
        services.lift_suppression(suppression_id, source=f"api:{self.caller.client.name}")
        return Response(status=204)
