"""/v1/users/{id}/addresses"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from rest_framework.request import Request
from rest_framework.response import Response

from apps.people import services
from apps.people.models import Address
from apps.people.selectors import user_by_external_id
from apps.people.shapes import ADDRESS, ADDRESS_CHANGE
from apps.people.shown import ADDRESS_OUT, show_address
from apps.rest.pagination import page, page_query
from apps.rest.schema import page_of
from apps.rest.views import ClientView, created


class Addresses(ClientView):
    scope = "users"
    queries = {"GET": page_query()}
    bodies = {"POST": ADDRESS}
    answers = {"GET": {200: page_of(ADDRESS_OUT)}, "POST": {200: ADDRESS_OUT, 201: ADDRESS_OUT}}

    def get(self, request: Request, user_id: str) -> Response:
        user = user_by_external_id(user_id)
        rows = Address.objects.filter(user=user)
        return Response(
            page(
                rows,
                self.query,
                scope=f"addresses/{user.pk}",
                show=lambda found: [show_address(address) for address in found],
            )
        )

    def post(self, request: Request, user_id: str) -> Response:
        address, is_new = services.add_address(user_id, **_named(self.body()))
        return created(show_address(address), is_new=is_new)


class OneAddress(ClientView):
    scope = "users"
    bodies = {"PUT": ADDRESS_CHANGE}
    answers = {"PUT": {200: ADDRESS_OUT}}

    def put(self, request: Request, user_id: str, address_id: UUID) -> Response:
        return Response(show_address(services.change_address(user_id, address_id, **_named(self.body()))))

    def delete(self, request: Request, user_id: str, address_id: UUID) -> Response:
        services.remove_address(user_id, address_id)
        return Response(status=204)


def _named(body: dict[str, Any]) -> dict[str, Any]:
    """The body under the services' names."""
    names = {"primary": "is_primary", "verified": "is_verified"}
    return {names.get(name, name): value for name, value in body.items()}
