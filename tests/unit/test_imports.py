"""What a process imports is most of its start and of its memory: each takes what it works with, no more."""

from __future__ import annotations

import json
import subprocess
import sys

from apps.console.supervisor import ROOT

FOR_THE_WEB = {"drf_spectacular.plumbing", "rest_framework.views", "unfold.admin", "django.test", "requests"}
FOR_SENDING = {"aiohttp", "firebase_admin", "aioapns", "twilio", "sendgrid", "aiosmtplib"}


def imported_by(program: str) -> set[str]:
    """The modules that a new Python has after `program`."""
    code = f"{program}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_a_worker_starts_without_what_only_the_web_and_the_sending_need() -> None:
    found = imported_by(
        """
import os, django
os.environ["CELERY_SKIP_CHECKS"] = "1"
django.setup()
from config import celery_app
celery_app.loader.import_default_modules()
"""
    )
    assert "apps.notifications.services.expand" in found
    assert found & (FOR_THE_WEB | FOR_SENDING) == set()


def test_a_worker_imports_the_providers_of_its_own_channel_alone() -> None:
    found = imported_by(
        """
from dataclasses import replace
from notifier.pipeline import Worker
from notifier.providers.registry import PROVIDERS
from tests.fakes import ACCOUNT, MemoryLedger, claimed
accounts = [replace(ACCOUNT, id=number, kind=kind) for number, kind in enumerate(PROVIDERS)]
worker = Worker.start(MemoryLedger(known_accounts=accounts), lambda: 0)
worker.prepare({"sms"})
worker.router.use(accounts)
assert worker.router.pick(claimed(channel="sms")).kind == "twilio"
worker.close(5)
"""
    )
    assert found & FOR_SENDING == {"aiohttp", "twilio"}


def test_garbage_is_looked_for_again_once_all_apps_are_loaded_and_never_among_what_was_imported() -> None:
    imported_by(
        """
import gc, django, config
assert not gc.isenabled()
django.setup()
assert gc.isenabled()
assert gc.get_freeze_count() > 50_000
assert len(gc.get_objects()) < 5_000
"""
    )
