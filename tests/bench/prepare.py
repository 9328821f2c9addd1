"""Fills a migrated database with what the load needs: a client, categories, templates, people with a device each.

Run in the stack's environment: `python -m tests.bench.prepare people FILE` once for the database that runs are
copied from, `accounts URL SMTP_PORT KEY_FILE` in each copy; `sandbox URL KEYS APNS_PORT SMTP_PORT` adds the accounts of
push to Apple's devices and of SMS.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup()

from django.db import transaction  # noqa: E402
from django.utils import timezone  # noqa: E402

from apps.clients import services as clients  # noqa: E402
from apps.console.seeds.demo import Sandbox, seed_categories, seed_client  # noqa: E402
from apps.people import services as people  # noqa: E402
from apps.people.devices import DEVICE  # noqa: E402
from apps.people.hashing import hash_token  # noqa: E402
from apps.people.models import Device, User  # noqa: E402
from apps.people.shapes import BULK_USER, MAX_BULK, USER  # noqa: E402
from apps.providers import services as providers  # noqa: E402
from apps.providers.models import ProviderAccount  # noqa: E402
from apps.rest.validation import Errors, Field  # noqa: E402
from apps.templates import services as templates  # noqa: E402
from notifier.ids import uuid7  # noqa: E402
from notifier.message import Mode  # noqa: E402
from tests.bench.load import CONNECTED, EMAIL, PEOPLE, TEMPLATES, connected, person  # noqa: E402

SENDER = "Bench <hello@bench.example.com>"


def fill(path: Path) -> None:
    with transaction.atomic():
        seed_categories()
        client = seed_client()
        client.senders = [SENDER]
        client.save()
        key, secret = clients.issue_key(client, Mode.LIVE)
        for name, (category, channels) in TEMPLATES.items():
            draft = templates.Draft(category, channels, "en", {}, {})
            _, version, _ = templates.save_draft(name, draft, name=name, by="bench")
            templates.publish(name, version.number)
    numbers = range(PEOPLE)
    for start in range(0, PEOPLE, MAX_BULK):
        page = numbers[start : start + MAX_BULK]
        with transaction.atomic():
            users = [_parsed(BULK_USER, {"id": person(n), "email": EMAIL.format(n), "locale": "en"}) for n in page]
            people.put_users([(values.pop("id"), values) for values in users], source="bench")
            rows = User.objects.in_bulk([person(n) for n in page], field_name="external_id")
            Device.objects.bulk_create([_device(rows[person(n)], n) for n in page])
    with transaction.atomic():
        for number in range(CONNECTED):
            _put_connected(number)
    path.write_text(json.dumps({"key": key, "secret": secret}))


def _put_connected(number: int) -> None:
    id = connected(number)
    values = {"email": f"{id}@people.bench.example.com", "phone": f"+1415555{number:04d}", "locale": "en"}
    people.put_user(id, _parsed(USER, values), source="bench")
    device = _parsed(DEVICE, {"platform": "ios", "token": f"{number:064x}"})
    people.register_device(id, device, source="bench")


def _device(user: User, number: int) -> Device:
    """As `people.register_device` makes it; ten thousand one by one would take minutes."""
    token = f"bench-{number:06d}-" + "d" * 150  # as long as a real one
    values = _parsed(DEVICE, {"platform": "android", "token": token})
    now = timezone.now()
    return Device(
        id=uuid7(),
        user=user,
        token_hash=hash_token(values["platform"], values["token"]),
        registered_at=now,
        last_seen_at=now,
        **values,
    )


def _parsed(shape: Field, value: dict[str, Any]) -> dict[str, Any]:
    errors = Errors()
    parsed: dict[str, Any] = shape.parse(value, None, errors)
    errors.raise_if_any()
    return parsed


def point_accounts(url: str, smtp_port: str, key_file: str) -> None:
    """Push goes to the sink at `url`, mail to the SMTP sink. Nobody checks what the service account signs."""
    private_key = Path(key_file).read_text()
    service_account = {
        "type": "service_account",
        "project_id": "bench",
        "private_key_id": "bench",
        "private_key": private_key,
        "client_email": "bench@bench.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": f"{url}/token",
    }
    smtp = {"host": "127.0.0.1", "port": int(smtp_port), "security": "none", "sender": SENDER}
    for account in (
        ProviderAccount(
            name="push-bench",
            kind="fcm",
            settings={"base_url": url},
            secrets={"service_account": json.dumps(service_account)},
        ),
        ProviderAccount(name="mail-bench", kind="smtp", settings=smtp),
    ):
        account.save()
        providers.check(account)


def add_sandbox(url: str, keys: str, apns_port: str, smtp_port: str) -> None:
    found = Sandbox(url, Path(keys), int(apns_port), int(smtp_port)).accounts()
    for name, values in found.items():
        if values["kind"] in ("apns", "twilio") and name.endswith("-main"):
            account = ProviderAccount(name=name, **values)
            account.save()
            providers.check(account)


if __name__ == "__main__":
    commands = {"people": lambda path: fill(Path(path)), "accounts": point_accounts, "sandbox": add_sandbox}
    commands[sys.argv[1]](*sys.argv[2:])
