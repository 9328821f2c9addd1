"""The middleware of the pages that people see. The API knows no session, cookie or message, and passes by."""

from __future__ import annotations

from collections.abc import Awaitable

from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponseBase
from django.middleware.csrf import CsrfViewMiddleware
from django.utils.deprecation import MiddlewareMixin

from apps.console.middleware import API_PREFIX


class _Pages(MiddlewareMixin):
    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if request.path_info.startswith(API_PREFIX):
            return self.get_response(request)
        return super().__call__(request)


class Sessions(_Pages, SessionMiddleware):
    pass


class Csrf(_Pages, CsrfViewMiddleware):
    pass


class Users(_Pages, AuthenticationMiddleware):
    pass


class Messages(_Pages, MessageMiddleware):
    pass
