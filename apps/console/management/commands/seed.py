"""`manage.py seed`: the demo's data, and the file that tells people how to use it. Repeating it changes nothing."""

from __future__ import annotations

import os
import secrets
import shlex
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from apps.clients import services as clients
from apps.clients.models import Client
from apps.console.seeds.demo import Sandbox, seed_accounts, seed_categories, seed_client, seed_people
from apps.console.seeds.templates import seed_templates
from notifier.message import Mode
from notifier.providers.base import ConfigurationError


class Command(BaseCommand):
    help = "Write the demo's client, people, categories, templates and sandbox accounts, and a file with the keys."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        environment = os.environ
        sandbox_port = environment.get("SANDBOX_PORT", "8100")
        sandbox_url = environment.get("SANDBOX_URL", f"http://127.0.0.1:{sandbox_port}")
        parser.add_argument("--demo-env", default=".run/demo.env", help="the file to write")
        parser.add_argument("--url", default=settings.PUBLIC_URL)
        parser.add_argument("--sandbox-url", default=sandbox_url)
        parser.add_argument("--sandbox-dir", default=environment.get("SANDBOX_TLS_DIR", ".run/sandbox"))
        parser.add_argument("--sandbox-apns-port", type=int, default=environment.get("SANDBOX_APNS_PORT", "8197"))
        parser.add_argument("--sandbox-smtp-port", type=int, default=environment.get("SANDBOX_SMTP_PORT", "8125"))
        parser.add_argument("--admin-user", default=environment.get("ADMIN_USER", "admin"))
        parser.add_argument("--admin-password", default=environment.get("ADMIN_PASSWORD", ""))

    def handle(self, *args: Any, **options: Any) -> None:
        if not settings.DEMO:
            raise CommandError("The demo's data would mix with yours. Set DEMO=1 if this is a demo.")
        sandbox = Sandbox(
            url=options["sandbox_url"].rstrip("/"),
            directory=Path(options["sandbox_dir"]),
            apns_port=int(options["sandbox_apns_port"]),
            smtp_port=int(options["sandbox_smtp_port"]),
        )
        path = Path(options["demo_env"])
        written = read_environment(path)
        password = options["admin_password"] or written.get("ADMIN_PASSWORD") or secrets.token_urlsafe(12)
        try:
            with transaction.atomic():
                seed_categories()
                seed_templates()
                seed_people()
                seed_accounts(sandbox)
                app_key, secret = key_of(seed_client(), written)
                seed_admin(options["admin_user"], password)
        except OSError as error:
            raise CommandError(f"{error}. The sandbox makes its keys when it starts: start it first.") from error
        except ConfigurationError as error:
            raise CommandError(f"A provider account of the demo cannot work: {error}") from error
        write_environment(
            path,
            {
                "NOTIFIER_URL": options["url"].rstrip("/"),
                "NOTIFIER_APP_KEY": app_key,
                "NOTIFIER_APP_SECRET": secret,
                "SANDBOX_URL": sandbox.url,
                "ADMIN_USER": options["admin_user"],
                "ADMIN_PASSWORD": password,
                "METRICS_TOKEN": settings.METRICS_TOKEN,
            },
        )
        self.stdout.write(f"The demo is seeded; its keys are in {path}.")


def key_of(client: Client, written: dict[str, str]) -> tuple[str, str]:
    """The key and secret in the file while they work; else a further secret, for none can be shown twice."""
    app_key, secret = written.get("NOTIFIER_APP_KEY", ""), written.get("NOTIFIER_APP_SECRET", "")
    keys = client.keys.filter(mode=Mode.LIVE.value, is_active=True).order_by("created_at")
    if keys.filter(pk=app_key).exists() and any(row.secret == secret for row in clients.live_secrets(app_key)):
        return app_key, secret
    key = keys.first()
    if key is None:
        return clients.issue_key(client, Mode.LIVE)
    live = list(clients.live_secrets(key.pk).order_by("created_at"))
    if len(live) >= clients.LIVE_SECRETS:
        clients.revoke_secret(live[0].pk)
    return key.pk, clients.add_secret(key.pk)


def seed_admin(name: str, password: str) -> None:
    user, _ = get_user_model().objects.get_or_create(
        username=name, defaults={"is_staff": True, "is_superuser": True, "email": "admin@juniper.example.com"}
    )
    if not user.check_password(password):
        user.set_password(password)
        user.save(update_fields=["password"])


def read_environment(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    pairs = (line.partition("=") for line in path.read_text().splitlines() if "=" in line)
    return {name: "".join(shlex.split(value)) for name, _, value in pairs}


def write_environment(path: Path, values: dict[str, str]) -> None:
    """A file that a shell can source, readable by its owner alone, complete or not there at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.new")
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.writelines(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
    unfinished.replace(path)
