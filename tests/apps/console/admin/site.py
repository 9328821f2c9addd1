"""The admin site as a member of staff meets it."""

from __future__ import annotations

import re
from typing import Any

from django.contrib.auth.models import Permission
from django.contrib.auth.models import User as Staff
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

_INLINE_SCRIPT = re.compile(r"<script(?![^>]*\bsrc=)[^>]*>|\son\w+=\"")


class Site:
    def __init__(self, staff: Staff) -> None:
        self.staff = staff
        self.browser = Browser()
        self.browser.force_login(staff)
        self.statements: list[str] = []

    @classmethod
    def of(cls, name: str, *permissions: str) -> Site:
        """Somebody with these permissions (`app.codename`) alone; without any: with all."""
        if not permissions:
            return cls(Staff.objects.create_superuser(name, password="of-the-tests"))
        staff = Staff.objects.create_user(name, password="of-the-tests", is_staff=True)
        for permission in permissions:
            app, codename = permission.split(".")
            staff.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
        return cls(staff)

    def read(self, path: str) -> str:
        """A page; its statements are kept in `statements`. Every page must be fit for the policy."""
        with CaptureQueriesContext(connection) as captured:
            answer = self.browser.get(path)
        self.statements = [entry["sql"] for entry in captured.captured_queries]
        assert answer.status_code == 200, f"{path} answered {answer.status_code} {answer.get('Location', '')}"
        text = answer.content.decode()
        assert not _INLINE_SCRIPT.search(text), f"{path} holds an inline script"
        return text

    def list(self, model: type[Any], **query: str) -> str:
        return self.read(at(model, "changelist") + ("?" + "&".join(f"{k}={v}" for k, v in query.items())))

    def page(self, model: type[Any], key: Any) -> str:
        return self.read(at(model, "change", key))

    def found(self, model: type[Any], term: str) -> list[Any]:
        """The rows of the list when one searches for `term`."""
        answer = self.browser.get(at(model, "changelist"), {"q": term})
        assert answer.status_code == 200, f"{term!r} answered {answer.status_code}"
        return list(answer.context["cl"].result_list)

    def ask(self, model: type[Any], key: Any, verb: str, **values: Any) -> Any:
        """A verb, as its dialog asks for it: the dialog is read, then sent."""
        path = at(model, verb, key)
        shown = self.browser.get(path, headers={"HX-Request": "true"})
        assert shown.status_code == 200, f"{path} answered {shown.status_code}"
        return self.browser.post(path, {"_form_submitted": "on", **values}, headers={"HX-Request": "true"})

    def told(self) -> list[str]:
        """What the next page says happened."""
        return [str(message) for message in self.browser.get(reverse("admin:index")).context["messages"]]


def at(model: type[Any], kind: str, *args: Any) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{kind}", args=args)
