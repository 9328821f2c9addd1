"""/v1/users/{id}/devices"""

from __future__ import annotations

from uuid import UUID

from rest_framework.request import Request
from rest_framework.response import Response

from apps.people import services
from apps.people.devices import DEVICE
from apps.people.models import Device
from apps.people.selectors import user_by_external_id
from apps.people.shown import DEVICE_OUT, show_device
from apps.rest.pagination import page, page_query
from apps.rest.schema import page_of
from apps.rest.views import ClientView, created


class Devices(ClientView):
    scope = "users"
    queries = {"GET": page_query()}
    bodies = {"POST": DEVICE}
    answers = {"GET": {200: page_of(DEVICE_OUT)}, "POST": {200: DEVICE_OUT, 201: DEVICE_OUT}}

    def get(self, request: Request, user_id: str) -> Response:
        user = user_by_external_id(user_id)
        rows = Device.objects.filter(user=user)
        return Response(
            page(
                rows,
                self.query,
                scope=f"devices/{user.pk}",
                show=lambda found: [show_device(device, user_id) for device in found],
            )
        )

    def post(self, request: Request, user_id: str) -> Response:
        device, is_new = services.register_device(user_id, self.body())
        return created(show_device(device, user_id), is_new=is_new)


class OneDevice(ClientView):
    scope = "users"

    def delete(self, request: Request, user_id: str, device_id: UUID) -> Response:
        services.remove_device(user_id, device_id)
        return Response(status=204)
