"""Who calls, and is it really them: Basic, or a signed request.

Nothing in an answer tells an unknown key from a wrong secret: same text, and the same work is done for both.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import time
from functools import cache
from typing import Any

from django.conf import settings
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from apps.clients import services
from apps.clients.callers import Caller, Credential, credentials
from apps.clients.signing import is_signed_by, targets
from apps.rest.body import BODY_LIMIT, raw_body
from apps.rest.problems import CHALLENGE, Problem
from apps.rest.remote import client_ip
from notifier.limits import Away, Store, store

TIMESTAMP_TOLERANCE_S = 300
NONCE_LIFE_S = 2 * TIMESTAMP_TOLERANCE_S + 60  # as long as its timestamp can be right, on either side
NONCE_STORE_RETRY_S = 1
SIGNED_HEADERS = ("HTTP_X_APP_KEY", "HTTP_X_TIMESTAMP", "HTTP_X_NONCE", "HTTP_X_SIGNATURE")

_APP_KEY = re.compile(r"[\x21-\x7e]{1,64}", re.ASCII)
_TIMESTAMP = re.compile(r"[0-9]{1,12}", re.ASCII)
_NONCE = re.compile(r"[A-Za-z0-9_-]{16,64}", re.ASCII)
_SIGNATURE = re.compile(r"v1=([0-9a-f]{64})", re.ASCII)
_NOBODY = ("as_" + "0" * 43,) * services.LIVE_SECRETS  # stands in for an unknown key's secrets


class AppKeyAuthentication(BaseAuthentication):
    """Sets `request.auth` to a Caller. Raises Problem: 401, 403 ip-not-allowed or client-suspended, 429, 503."""

    def authenticate(self, request: Request) -> tuple[Caller, Caller]:
        meta = request._request.META
        ip = client_ip(request._request)
        is_basic = "HTTP_AUTHORIZATION" in meta
        is_signed = any(name in meta for name in SIGNED_HEADERS)
        if is_basic == is_signed:
            raise Problem("unauthenticated")
        credential = _basic(meta, ip) if is_basic else _signed(request, meta, ip)
        caller = credential.caller
        if not caller.client.is_active:
            raise Problem("client-suspended")
        if not caller.client.is_reachable_from(ip):
            raise Problem("ip-not-allowed")
        services.note_use(caller.app_key)
        return caller, caller

    def authenticate_header(self, request: Request) -> str:
        return CHALLENGE


def _basic(meta: dict[str, Any], ip: str) -> Credential:
    scheme, _, encoded = meta["HTTP_AUTHORIZATION"].partition(" ")
    if scheme.lower() != "basic":
        raise Problem("unauthenticated")
    try:
        app_key, _, secret = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        raise Problem("unauthenticated") from None
    credential = _known(app_key)
    given = hashlib.sha256(secret.encode()).digest()
    found = False
    for candidate in _padded(credential):
        found |= hmac.compare_digest(hashlib.sha256(candidate.encode()).digest(), given)
    return _proven(credential, found, ip, app_key)


def _signed(request: Request, meta: dict[str, Any], ip: str) -> Credential:
    app_key, timestamp, nonce, signature = (meta.get(name, "") for name in SIGNED_HEADERS)
    found = _SIGNATURE.fullmatch(signature)
    if not (found and _TIMESTAMP.fullmatch(timestamp) and _NONCE.fullmatch(nonce)):
        raise Problem("unauthenticated")
    if abs(time.time() - int(timestamp)) > TIMESTAMP_TOLERANCE_S:
        raise Problem("timestamp-out-of-range")
    view = (request.parser_context or {}).get("view")
    credential = _known(app_key)
    is_right = is_signed_by(
        _padded(credential),
        found[1],
        targets=targets(meta),
        method=str(request._request.method),
        timestamp=timestamp,
        nonce=nonce,
        body=raw_body(request._request, getattr(view, "body_limit", BODY_LIMIT)),
    )
    proven = _proven(credential, is_right, ip, app_key)
    # Only now: whoever cannot sign must not be able to use up the nonces of those who can.
    _spend_nonce(app_key, nonce)
    return proven


def _known(app_key: str) -> Credential | None:
    return credentials.get(app_key) if _APP_KEY.fullmatch(app_key) else None


def _padded(credential: Credential | None) -> tuple[str, ...]:
    secrets = credential.secrets if credential else ()
    return (*secrets, *_NOBODY)[: services.LIVE_SECRETS]


def _proven(credential: Credential | None, is_right: bool, ip: str, app_key: str) -> Credential:
    if credential is None or not is_right:
        services.count_failure(ip, app_key)
        raise Problem("unauthenticated")
    return credential


def _spend_nonce(app_key: str, nonce: str) -> None:
    try:
        is_new = _nonces().add_once(f"nonce:{app_key}:{nonce}", NONCE_LIFE_S)
    except Away:
        raise Problem("nonce-store-unavailable", retry_after_s=NONCE_STORE_RETRY_S) from None
    if not is_new:
        raise Problem("nonce-reused")


@cache
def _nonces() -> Store:
    return store(settings.LIMITS_URL)
