"""/v1/users"""

from __future__ import annotations

from typing import Any

from rest_framework.request import Request
from rest_framework.response import Response

from apps.people import services
from apps.people.hashing import hash_address
from apps.people.models import Address, Device, User
from apps.people.selectors import user_by_external_id
from apps.people.shapes import BULK, BULK_USER, USER, USER_ID
from apps.people.shown import BULK_OUT, USER_OUT, show_users
from apps.rest.body import BULK_BODY_LIMIT
from apps.rest.catalogue import FieldCode
from apps.rest.formats import Email, Phone
from apps.rest.pagination import page, page_query
from apps.rest.problems import MAX_ITEM_ERRORS, FieldError, invalid
from apps.rest.schema import page_of
from apps.rest.validation import Errors, Text
from apps.rest.views import ClientView, created
from notifier.message import Channel


class Users(ClientView):
    scope = "users"
    queries = {
        "GET": page_query(
            email=Email(), phone=Phone(), token_hash=Text(pattern=r"[0-9a-f]{32}", says="must be 32 hexadecimal digits")
        )
    }
    answers = {"GET": {200: page_of(USER_OUT)}}

    def get(self, request: Request) -> Response:
        users = User.objects.filter(erased_at=None)
        for name, channel in (("email", Channel.EMAIL), ("phone", Channel.SMS)):
            if name in self.query:
                hashed = hash_address(channel, self.query[name])
                users = users.filter(
                    pk__in=Address.objects.filter(value_hash=hashed, channel=channel).values("user_id")
                )
        if "token_hash" in self.query:
            users = users.filter(pk__in=Device.objects.filter(token_hash=self.query["token_hash"]).values("user_id"))
        return Response(page(users, self.query, scope="users", show=show_users))


class OneUser(ClientView):
    scope = "users"
    bodies = {"PUT": USER}
    answers = {"GET": {200: USER_OUT}, "PUT": {200: USER_OUT, 201: USER_OUT}}

    def get(self, request: Request, user_id: str) -> Response:
        return Response(show_users([user_by_external_id(user_id)])[0])

    def put(self, request: Request, user_id: str) -> Response:
        errors = Errors()
        USER_ID.parse(user_id, (None, "id"), errors)
        errors.raise_if_any()
        result = services.put_user(user_id, self.body())
        return created(show_users([result.user])[0], is_new=result.is_new)


class BulkUsers(OneUser):
    """POST takes many users; the other methods are those of the user whose id is "bulk"."""

    bodies = {**OneUser.bodies, "POST": BULK}
    answers = {"POST": {200: BULK_OUT}}
    undocumented = ("GET", "PUT")
    body_limit = BULK_BODY_LIMIT

    def post(self, request: Request, user_id: str) -> Response:
        items = self.body()["users"]
        results: list[dict[str, Any]] = [{"index": index} for index in range(len(items))]
        patches: dict[str, tuple[int, dict[str, Any]]] = {}
        for index, item in enumerate(items):
            errors = Errors(most=MAX_ITEM_ERRORS)
            path = ((None, "users"), index)
            values = BULK_USER.parse(item, path, errors)
            if not errors and values["id"] in patches:
                errors.add((path, "id"), FieldCode.CONFLICT, "an earlier item names this user")
            if errors:
                results[index] |= _rejected(item, errors.items)
            else:
                patches[values.pop("id")] = index, values
        saved = services.put_users([(id, values) for id, (_, values) in patches.items()])
        for (id, (index, _)), result in zip(patches.items(), saved, strict=True):
            if result.error:
                at = FieldError(f"/users/{index}{result.error.pointer}", result.error.code, result.error.detail)
                results[index] |= _rejected({"id": id}, [at])
            else:
                results[index] |= {"result": "created" if result.is_new else "updated", "id": id}
        counts = {
            name: sum(result["result"] == name for result in results) for name in ("created", "updated", "rejected")
        }
        return Response({**counts, "results": results})


def _rejected(item: Any, errors: list[FieldError]) -> dict[str, Any]:
    id = item.get("id") if isinstance(item, dict) else None
    problem = invalid(errors)
    return {
        "result": "rejected",
        "id": id if isinstance(id, str) else None,
        "code": problem.code,
        "errors": [{"pointer": e.pointer, "code": e.code, "detail": e.detail} for e in problem.errors],
    }
