"""Whether the key may do that: each view names the scope it needs."""

from __future__ import annotations

from typing import Any

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from apps.rest.problems import Problem


class HasScope(BasePermission):
    """Allows a request whose key has the view's `scope`: one name, or a name per method ("GET" covers HEAD).

    A view without `scope` is closed to everybody, so that a forgotten one is found by its first test.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        caller: Any = request.auth
        if caller is None:
            raise Problem("unauthenticated")
        scope = getattr(view, "scope", None)
        if isinstance(scope, dict):
            scope = scope.get("GET" if request.method == "HEAD" else str(request.method))
            if scope is None:
                view.http_method_not_allowed(request)
        if scope is None or scope not in caller.client.scopes:
            raise Problem("scope-missing", f"the key needs the scope {scope}", scope=scope)
        return True
