"""What is done to clients' credentials, and how much a client may do."""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from apps.clients.models import AppKey, AppSecret, Client
from apps.clients.policy import ClientPolicy
from apps.rest.problems import Problem
from notifier.limits import Bucket, Level, TokenBuckets, store
from notifier.message import Mode

logger = logging.getLogger(__name__)

LIVE_SECRETS = 2  # one in use, one to move over to
KEY_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"  # keys are read aloud: nothing that looks like something else


class CredentialError(ValueError):
    """A credential cannot be changed that way; the text says why and what to do instead."""


# --- Credentials ------------------------------------------------------------------------------------------------


@transaction.atomic
def issue_key(client: Client, mode: Mode | str) -> tuple[str, str]:
    """A new key for `client` in `mode`, with its first secret: (app_key, app_secret).

    The secret is shown this once; only its encrypted form is kept.
    """
    name = f"ak_{Mode(mode)}_" + "".join(secrets.choice(KEY_LETTERS) for _ in range(24))
    key = AppKey.objects.create(app_key=name, client=client, mode=Mode(mode).value)
    return name, _make_secret(key)


@transaction.atomic
def add_secret(app_key: str) -> str:
    """A further secret, for rotation. Raises CredentialError when two are live or the key is revoked."""
    key = AppKey.objects.select_for_update().get(pk=app_key)
    if not key.is_active:
        raise CredentialError("the key is revoked; make a new key")
    if live_secrets(app_key).count() >= LIVE_SECRETS:
        raise CredentialError(f"the key has {LIVE_SECRETS} live secrets; revoke the one that is no longer used first")
    return _make_secret(key)


def revoke_secret(secret_id: int) -> None:
    """Within 2 s the secret opens nothing, on any process. Repeating changes nothing."""
    AppSecret.objects.filter(pk=secret_id, revoked_at=None).update(revoked_at=timezone.now())


def revoke_key(app_key: str) -> None:
    """The same for a key with all its secrets."""
    AppKey.objects.filter(pk=app_key).update(is_active=False)


def live_secrets(app_key: str) -> QuerySet[AppSecret]:
    """The secrets that open `app_key` now, newest first."""
    live = Q(expires_at=None) | Q(expires_at__gt=timezone.now())
    return AppSecret.objects.filter(live, key_id=app_key, revoked_at=None).order_by("-pk")


def _make_secret(key: AppKey) -> str:
    secret = "as_" + secrets.token_urlsafe(32)
    AppSecret.objects.create(key=key, secret=secret, hint=secret[-4:])
    return secret


# --- Limits -----------------------------------------------------------------------------------------------------

REQUESTS_WINDOW_S = 60
RECIPIENTS_WINDOW_S = 24 * 3600
FAILURES = 20  # wrong credentials of one address for one key...
FAILURES_WINDOW_S = 60  # ... a minute


@cache
def token_buckets() -> TokenBuckets:
    return TokenBuckets(store(settings.LIMITS_URL))


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of a client's limits."""

    levels: Sequence[Level]
    policy: str

    @property
    def headers(self) -> dict[str, str]:
        """RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit-headers)."""
        left = ", ".join(f'"{level.bucket.name}";r={level.left};t={level.full_in_s}' for level in self.levels)
        return {"RateLimit-Policy": self.policy, "RateLimit": left}


def check_rate(client: ClientPolicy, mode: Mode | str, *, requests: int = 1, recipients: int = 0) -> Allowance:
    """Take requests and recipients from the client's limits in this mode, both or none, in one round trip.

    Raises Problem rate-limited or quota-exceeded, with Retry-After. Redis away: each process counts for itself.
    """
    of_requests = Bucket("default", f"{client.id}:{mode}:requests", client.requests_per_minute, REQUESTS_WINDOW_S)
    of_recipients = Bucket(
        "recipients", f"{client.id}:{mode}:recipients", client.recipients_per_day, RECIPIENTS_WINDOW_S
    )
    costs = [(of_requests, requests)]
    if recipients:
        costs.append((of_recipients, recipients))
    policy = ", ".join(f'"{b.name}";q={b.capacity};w={b.window_s}' for b in (of_requests, of_recipients))
    allowance = Allowance(token_buckets().spend(costs), policy)
    for level in allowance.levels:
        if not level.could_pay:
            raise _refusal(level, allowance.headers)
    return allowance


def _refusal(level: Level, headers: dict[str, str]) -> Problem:
    is_quota = level.bucket.name == "recipients"
    return Problem(
        "quota-exceeded" if is_quota else "rate-limited",
        f"{level.bucket.capacity} {'recipients a day' if is_quota else 'requests a minute'} for this client and mode",
        headers=headers,
        retry_after_s=int(level.wait_s) + 1,
        policy=level.bucket.name,
    )


def count_failure(ip: str, app_key: str) -> None:
    """Note a wrong credential. Raises Problem rate-limited for an address that tries one key too often."""
    bucket = Bucket("failures", f"failures:{ip}:{app_key[:64]}", FAILURES, FAILURES_WINDOW_S)
    [level] = token_buckets().spend([(bucket, 1)])
    if not level.could_pay:
        raise Problem(
            "rate-limited",
            "too many wrong credentials from this address",
            retry_after_s=int(level.wait_s) + 1,
            policy=bucket.name,
        )


# --- When a key was last used -----------------------------------------------------------------------------------

LAST_USED_EVERY_S = 60.0
_noted: dict[str, float] = {}  # by key: when this process last noted its use
_used: deque[str] = deque()


def note_use(app_key: str) -> None:
    """Remember that the key was used, at most once a minute; it is written when the answer has left."""
    now = time.monotonic()
    if now - _noted.get(app_key, float("-inf")) >= LAST_USED_EVERY_S:
        _noted[app_key] = now
        _used.append(app_key)


def write_uses(**_: Any) -> None:
    """Receives `request_finished`: nobody waits for it any more, so a database that is away is no error."""
    keys = set()
    while _used:
        keys.add(_used.popleft())
    if not keys:
        return
    try:
        now = timezone.now()
        # Other processes note the same key; one of them a minute is enough.
        stale = Q(last_used_at=None) | Q(last_used_at__lt=now - timedelta(seconds=LAST_USED_EVERY_S / 2))
        AppKey.objects.filter(stale, pk__in=sorted(keys)).update(last_used_at=now)
    except DatabaseError as error:
        logger.warning("when keys were last used could not be written: %s", type(error).__name__)
