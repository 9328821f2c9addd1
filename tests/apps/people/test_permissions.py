"""Who may see whole addresses, and how they come to it."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission

from apps.people import services
from apps.people.admin import LIFT_PROTECTED
from apps.people.models import Address
from apps.rest.admin import MAY_SEE_ADDRESSES
from tests.apps.console.admin.site import Site, at


@pytest.mark.parametrize("named", [MAY_SEE_ADDRESSES, LIFT_PROTECTED])
def test_every_permission_that_the_screens_ask_for_exists_after_migrate(db: None, named: str) -> None:
    app, codename = named.split(".")
    assert Permission.objects.filter(content_type__app_label=app, codename=codename).count() == 1


def test_whole_addresses_are_shown_to_a_group_that_was_granted_them_by_an_admin(db: None) -> None:
    services.put_user("ada", {"email": "ada@example.com"})
    mail = Address.objects.get()
    root, support = Site.of("root"), Site.of("support", "people.view_address")
    assert "ada@example.com" not in support.page(Address, mail.pk)

    offered = choices(root)
    [right] = [value for value, label in offered if "whole addresses" in label]
    answer = root.browser.post(at(Group, "add"), {"name": "callers back", "permissions": [str(right)]})
    assert answer.status_code == 302, answer.content
    support.staff.groups.add(Group.objects.get(name="callers back"))

    assert "ada@example.com" in support.page(Address, mail.pk)


def choices(site: Site) -> list[tuple[Any, str]]:
    """What the form of a group offers to tick."""
    form = site.browser.get(at(Group, "add")).context["adminform"].form
    return [(value, str(label)) for value, label in form.fields["permissions"].choices]
