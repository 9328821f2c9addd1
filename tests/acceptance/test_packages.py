"""Each of the packages this service is built on does its work: without it, that work fails and says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.stack import Stack

ROOT = Path(__file__).resolve().parents[2]

SETUP = """
import os, sys
if len(sys.argv) > 1:
    sys.modules[sys.argv[1]] = None  # what a missing package looks like to an import
os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
"""
REQUEST = """
import base64, io, json, time
from config.wsgi import application

said = json.dumps({"template": "order-shipped", "to": [{"user_id": "ada"}],
                   "data": {"order": {"id": "A-1", "eta": "2026-11-25"}}}).encode()
key = base64.b64encode(f"{os.environ['NOTIFIER_APP_KEY']}:{os.environ['NOTIFIER_APP_SECRET']}".encode()).decode()
seen = []
body = application(
    {"REQUEST_METHOD": "POST", "PATH_INFO": "/v1/notifications", "QUERY_STRING": "", "SERVER_NAME": "127.0.0.1",
     "SERVER_PORT": "80", "REMOTE_ADDR": "127.0.0.1", "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(said),
     "CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(said)), "HTTP_AUTHORIZATION": f"Basic {key}"},
    lambda status, headers: seen.append(status))
answer = b"".join(body)
assert seen == ["202 Accepted"], (seen, answer)

from apps.notifications.models import Delivery
from notifier.lifecycle import OPEN
deliveries = Delivery.objects.filter(notification_id=json.loads(answer)["id"])
until = time.monotonic() + 60
while not (states := set(deliveries.values_list("state", flat=True))) or states & OPEN:
    assert time.monotonic() < until, states
    time.sleep(0.1)
assert states <= {"sent", "delivered"}, states
"""
RING = """
import django; django.setup()
from apps.notifications import ringing
ringing.publish_canaries()
"""
QUERY = """
import django; django.setup()
from apps.notifications.partitions import days_ahead
assert days_ahead() >= 14
"""
TICK = """
import django; django.setup()
from celery.utils.imports import symbol_by_name
from config.celery import app
scheduler = symbol_by_name(app.conf.beat_scheduler)(app=app)
assert "keep_partitions" in scheduler.schedule, list(scheduler.schedule)
assert scheduler.tick() >= 0
"""
SEND = """
import asyncio, time, django; django.setup()
from apps.providers.models import ProviderAccount
from apps.providers.services import as_engine
from notifier.ids import uuid7
from notifier.message import Address, Channel, EmailContent, Lane, Message, Mode, Platform, PushContent, SmsContent
from notifier.providers.base import Surroundings
from notifier.providers.carrier import Carrier
from notifier.stages.dispatch import make_provider

address, content = {{
    "fcm": (Address(Channel.PUSH, "sandbox-ok-packages", Platform.ANDROID, "fcm_token"), PushContent("Hi", "there")),
    "apns": (Address(Channel.PUSH, "5a0db0c50200" + "ab" * 26, Platform.IOS), PushContent("Hi", "there")),
    "twilio": (Address(Channel.SMS, "+15005550006"), SmsContent("Hi")),
    "sendgrid": (Address(Channel.EMAIL, "delivered+p@sandbox.invalid"), EmailContent("Hi", "there")),
}}["{kind}"]

async def send():
    async with Carrier() as carrier:
        account = as_engine(ProviderAccount.objects.get(name="{kind}-sandbox"))
        provider = make_provider(account, Surroundings(carrier=carrier, hook_url=account.hook_url))
        id = uuid7()
        message = Message(id, 1, address.channel, Lane.NORMAL, Mode.TEST, address, content, time.time() + 600, id.hex)
        try:
            return await provider.send([message])
        finally:
            await provider.aclose()

os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
[outcome] = asyncio.run(send())
assert outcome.kind == "accepted", outcome
"""

PROBES = {
    "django": REQUEST,
    "rest_framework": REQUEST,
    "celery": RING,
    "redis": RING,
    "psycopg2": QUERY,
    "django_celery_beat": TICK,
    "firebase_admin": SEND.format(kind="fcm"),
    "aioapns": SEND.format(kind="apns"),
    "twilio": SEND.format(kind="twilio"),
    "sendgrid": SEND.format(kind="sendgrid"),
}


@pytest.mark.parametrize("package", PROBES)
def test_the_work_is_done_with_the_package_and_not_without_it(stack: Stack, package: str) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", SETUP + PROBES[package], *arguments],
            cwd=ROOT,
            env=stack.environment | stack.demo,
            capture_output=True,
            text=True,
            timeout=120,
        )

    works = run()
    assert works.returncode == 0, works.stderr[-2000:]
    fails = run(package)
    assert fails.returncode != 0
    assert package in fails.stderr
