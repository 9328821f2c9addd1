"""The admin's files: from where they lie, or collected, with names that browsers may keep for ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.management import call_command
from django.templatetags.static import static
from django.test import Client, override_settings


@pytest.fixture
def collected(tmp_path: Path) -> Iterator[Path]:
    """What `collectstatic` makes of an empty directory, and processes that find it there."""
    with override_settings(STATIC_ROOT=tmp_path, WHITENOISE_USE_FINDERS=False):
        call_command("collectstatic", interactive=False, verbosity=0)
        yield tmp_path


def test_without_collecting_the_files_are_served_under_their_own_names():
    assert static("console/console.css") == "/static/console/console.css"
    assert Client().get("/static/console/console.css").status_code == 200


def test_what_was_collected_is_served_compressed_under_names_that_may_be_kept_for_ever(collected: Path):
    assert (collected / "staticfiles.json").exists()
    address = static("console/console.css")
    assert address.startswith("/static/console/console.")
    assert address != "/static/console/console.css"
    answer = Client().get(address, headers={"accept-encoding": "gzip"})
    assert answer.status_code == 200
    assert "immutable" in answer["Cache-Control"]
    assert answer["Content-Encoding"] == "gzip"


def test_every_screen_finds_its_files_among_those_collected(collected: Path, admin_client: Client):
    page = admin_client.get("/admin/")
    assert page.status_code == 200
    assert static("console/console.css") in page.content.decode()
