"""/v1/users/{id}/preferences and /v1/categories"""

from __future__ import annotations

from rest_framework.request import Request
from rest_framework.response import Response

from apps.people import services
from apps.people.models import Category
from apps.people.selectors import user_by_external_id
from apps.people.services.preferences import UNCHANGED
from apps.people.shapes import PREFERENCES
from apps.people.shown import CATEGORY_OUT, PREFERENCES_OUT, show_category, show_preferences
from apps.rest.pagination import page, page_query
from apps.rest.problems import Problem
from apps.rest.schema import page_of
from apps.rest.views import ClientView


class Preferences(ClientView):
    scope = "users"
    bodies = {"PUT": PREFERENCES}
    answers = {"GET": {200: PREFERENCES_OUT}, "PUT": {200: PREFERENCES_OUT}}

    def get(self, request: Request, user_id: str) -> Response:
        return Response(show_preferences(user_by_external_id(user_id)))

    def put(self, request: Request, user_id: str) -> Response:
        wanted = self.body()
        quiet_hours = wanted.get("quiet_hours", UNCHANGED)
        user = services.set_preferences(
            user_id,
            everything=wanted.get("all"),
            choices=wanted.get("categories"),
            quiet_hours=(quiet_hours["from"], quiet_hours["to"]) if isinstance(quiet_hours, dict) else quiet_hours,
        )
        return Response(show_preferences(user))


class Categories(ClientView):
    scope = "read"
    queries = {"GET": page_query()}
    answers = {"GET": {200: page_of(CATEGORY_OUT)}}

    def get(self, request: Request) -> Response:
        rows = Category.objects.all()
        return Response(
            page(rows, self.query, scope="categories", show=lambda found: [show_category(row) for row in found])
        )


class OneCategory(ClientView):
    scope = "read"
    answers = {"GET": {200: CATEGORY_OUT}}

    def get(self, request: Request, key: str) -> Response:
        category = Category.objects.filter(key=key).first()
        if category is None:
            raise Problem("not-found", "there is no such category")
        return Response(show_category(category))
