"""The house rules that no reviewer should have to remember."""

from __future__ import annotations

import ast
import os
import re
import tokenize
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import call_command
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from apps.console.supervisor import procfile, queues_of
from config import settings
from notifier.providers.registry import PROVIDERS
from notifier.queues import ALL_QUEUES, DELIVERY_QUEUES, channel_and_lane

ROOT = Path(__file__).resolve().parent.parent

FLOOR = {"rest", "encryption"}
LOWER_ROOMS = {"clients", "people", "templates", "providers"}
MAY_IMPORT = {
    **{room: FLOOR for room in LOWER_ROOMS | FLOOR},
    "notifications": FLOOR | LOWER_ROOMS,
    "campaigns": FLOOR | LOWER_ROOMS | {"notifications"},
    "engagement": FLOOR | LOWER_ROOMS | {"notifications"},
    "console": FLOOR | LOWER_ROOMS | {"notifications", "campaigns", "engagement"},
}
BEFORE_SETTINGS = {"binaries.py", "servers.py", "supervisor.py"}  # run before Django may be imported


def python_files(*folders: str) -> list[Path]:
    return sorted(
        path for folder in folders for path in (ROOT / folder).rglob("*.py") if "migrations" not in path.parts
    )


def imports(path: Path) -> Iterator[str]:
    """Every module that the file names in an import, inside functions and type-checking blocks too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; spell it out, so that this test can read it"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def offences(files: list[Path], forbidden: re.Pattern[str]) -> list[str]:
    return [f"{path.relative_to(ROOT)}: {name}" for path in files for name in imports(path) if forbidden.match(name)]


def test_the_engine_imports_neither_django_nor_apps_nor_config():
    forbidden = re.compile(r"(django|rest_framework|celery|apps|config)(\.|$)")
    assert offences(python_files("notifier"), forbidden) == []


def test_apps_do_not_import_the_configuration():
    assert offences(python_files("apps"), re.compile(r"config(\.|$)")) == []


def test_the_sandbox_shares_no_code_with_what_it_tests():
    forbidden = re.compile(r"(apps|config|django|notifier(?!\.sandbox))(\.|$)")
    assert offences(python_files("notifier/sandbox"), forbidden) == []
    others = [path for path in python_files("notifier", "apps", "config") if "sandbox" not in path.parts]
    assert offences(others, re.compile(r"notifier\.sandbox(\.|$)")) == []


@pytest.mark.parametrize(
    "room", sorted(path.name for path in (ROOT / "apps").iterdir() if (path / "__init__.py").exists())
)
def test_a_room_imports_only_from_rooms_below_it(room):
    allowed = MAY_IMPORT[room] | {room}
    named = (
        name.split(".")[1:2]
        for path in python_files(f"apps/{room}")
        for name in imports(path)
        if name.startswith("apps.")
    )
    assert {other for names in named for other in names} <= allowed


def test_inside_a_room_views_admin_and_tasks_lean_on_services_and_services_on_models():
    upward = {
        "services": r"apps\.\w+\.(api|admin|tasks|urls)(\.|$)",
        "models": r"apps\.\w+\.(api|admin|tasks|urls|services)(\.|$)",
        "tasks": r"apps\.\w+\.(api|admin|urls)(\.|$)",
    }
    for layer, forbidden in upward.items():
        files = [path for path in python_files("apps") if layer in (path.stem, path.parent.name)]
        assert files, f"no room has {layer}"
        assert offences(files, re.compile(forbidden)) == []


def test_what_runs_before_the_settings_needs_no_django():
    files = [path for path in python_files("apps/console") if path.name in BEFORE_SETTINGS]
    assert len(files) == len(BEFORE_SETTINGS)
    assert offences(files, re.compile(r"(django|rest_framework|celery|config)(\.|$)")) == []


CALLERS_WORDS = re.compile(r"\b(apns_environment|fcm_token|fcm_fid)\b")
"""Field names and values of the public API: a device's own facts, not a choice of provider."""


def code_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The file's tokens without its comments, which may cite a vendor's rule: (line, text)."""
    with path.open("rb") as source:
        for token in tokenize.tokenize(source.readline):
            if token.type != tokenize.COMMENT:
                yield token.start[0], token.string


def test_a_providers_name_appears_only_in_its_own_places():
    own_places = re.compile(
        r"notifier/providers/|notifier/sandbox/|apps/console/(seeds/|management/commands/seed\.py$)"
    )
    kinds = [kind for kind in PROVIDERS if kind != "smtp"]  # that one is a protocol's name too
    names = re.compile("|".join(rf"(?<![a-z]){kind}(?![a-z])" for kind in kinds), re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text.strip()[:80]}"
        for path in python_files("notifier", "apps", "config")
        if not own_places.search(path.relative_to(ROOT).as_posix())
        for line, text in code_lines(path)
        if names.search(CALLERS_WORDS.sub("", text))
    ]
    assert found == []


def test_every_queue_has_a_consumer():
    consumed = [queue for command in procfile().values() for queue in queues_of(command)]
    assert sorted(consumed) == sorted(ALL_QUEUES)


def test_critical_work_has_processes_that_read_nothing_else():
    readers = [queues_of(command) for command in procfile().values()]
    critical = [queue for queue in DELIVERY_QUEUES if channel_and_lane(queue)[1] == "critical"]
    assert critical
    for queue in critical:
        assert [queue] in readers


def test_no_task_may_outlive_the_brokers_patience():
    workers = [command for command in procfile().values() if queues_of(command)]
    limits = [re.search(r"--time-limit (\d+)", command) for command in workers]
    assert all(limit and int(limit[1]) < 120 for limit in limits)
    assert settings.CELERY_BROKER_TRANSPORT_OPTIONS["visibility_timeout"] == 120


PUBLIC = re.compile(
    r"^(healthz|readyz|metrics|v1/openapi\.json|docs|docs/|docs/errors/.*|hooks/.*|t/o/.*|t/c/.*|t/e/.*|u/.*|static/.*)$"
)
"""Open without credentials by contract; /metrics and /hooks check their own kind, each with a test of its own."""

SAMPLES = {"uuid": "01936d3c-0000-7000-8000-000000000000", "int": "1", "slug": "some", "str": "some", "path": "some"}


def routes(resolver: URLResolver, prefix: str = "") -> Iterator[tuple[str, URLPattern]]:
    for pattern in resolver.url_patterns:
        route = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from routes(pattern, route)
        else:
            yield route, pattern


def sample_path(route: str) -> str:
    """A path that the route matches: every converter filled in, every regular expression stripped to its text."""
    filled = re.sub(r"<(?:(\w+):)?\w+>", lambda found: SAMPLES.get(found[1] or "str", "some"), route)
    return "/" + re.sub(r"\(\?P<\w+>[^)]*\)|[\^$\\]|\(\?:.*?\)", "", filled)


@pytest.mark.django_db
@pytest.mark.parametrize("method", ["get", "post", "put", "delete"])
def test_every_endpoint_refuses_without_credentials(method):
    client = Client()
    seen = 0
    for route, _ in routes(get_resolver()):
        if route.startswith("admin/") or PUBLIC.match(route):
            continue
        answer = getattr(client, method)(sample_path(route), content_type="application/json")
        assert answer.status_code == 401, f"{method.upper()} /{route} answered {answer.status_code} without credentials"
        seen += 1
    assert seen, "no endpoint was found: the walk itself is broken"


@pytest.mark.django_db
def test_every_admin_page_asks_for_a_login():
    client = Client()
    open_by_design = ("admin/login/", "admin/logout/", "admin/jsi18n/")
    seen = 0
    for route, _ in routes(get_resolver()):
        if route.startswith("admin/") and route not in open_by_design:
            answer = client.get(sample_path(route))
            assert answer.status_code in (302, 403, 404), f"/{route} answered {answer.status_code} to a stranger"
            if answer.status_code == 302:
                assert "/admin/login/" in answer["Location"], f"/{route} sent a stranger to {answer['Location']}"
            seen += 1
    assert seen


OF_A_SESSION = re.compile(
    r"\b(pg_(try_)?advisory_(lock|unlock)\w*|LISTEN|UNLISTEN|PREPARE|DISCARD|WITH HOLD|SET SESSION|TEMP(ORARY)? TABLE"
    r"|set_config\([^)]*false)\b|\"SET (?!LOCAL )\w+ *(=|TO)[^\"]*\"\s*\)"
)


def test_no_statement_leaves_anything_in_a_session():
    """PgBouncer in transaction mode gives the next transaction another one."""
    sources = python_files("apps", "config") + sorted((ROOT / "apps").rglob("*.sql"))
    assert any(path.suffix == ".sql" for path in sources)
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}" for path in sources for match in OF_A_SESSION.finditer(path.read_text())
    ]
    assert found == []
    assert settings.DATABASES["default"]["DISABLE_SERVER_SIDE_CURSORS"]


@pytest.mark.django_db
def test_no_migration_is_missing():
    said = StringIO()
    try:
        call_command("makemigrations", check=True, dry_run=True, stdout=said)
    except SystemExit:
        pytest.fail(f"a model changed without its migration:\n{said.getvalue()}")


def test_the_openapi_file_is_made_from_the_code_without_a_warning():
    call_command("spectacular", validate=True, fail_on_warn=True, file=os.devnull)


@pytest.mark.django_db
def test_the_contract_is_open_to_everybody():
    openapi = Client().get("/v1/openapi.json")
    assert openapi.status_code == 200
    assert "/v1/notifications" in openapi.json()["paths"]
    docs = Client().get("/docs")
    assert docs.status_code == 200
    assert "https://" not in re.sub(r"<!--.*?-->", "", docs.content.decode()), "the page must load nothing from outside"


def test_settings_name_no_provider():
    text = (ROOT / "config" / "settings.py").read_text().lower()
    assert [kind for kind in PROVIDERS if re.search(rf"\b{kind}\b", text)] == []
