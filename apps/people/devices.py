"""What a device's registration must look like, per platform."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any
from urllib.parse import urlsplit

from apps.rest.catalogue import FieldCode
from apps.rest.formats import Locale, is_https_url
from apps.rest.paths import Path
from apps.rest.validation import Choice, Either, Errors, FreeObject, Shape, Text
from notifier.message import Platform
from notifier.providers.registry import DEVICE_KINDS, WEB_PUSH_HOSTS

TOKEN_KINDS = ("fcm_token", "fcm_fid")
MAX_TOKEN = 4096
MAX_VENDOR_TOKEN = 255

_PRINTABLE = re.compile(r"[\x21-\x7e]+", re.ASCII)
_HEX_TOKEN = re.compile(r"[0-9a-fA-F]{64,200}", re.ASCII)


def _normalise(device: dict[str, Any], path: Path, errors: Errors) -> None:
    """Fill in provider and token kind, and turn the token into the one text that is stored and hashed."""
    platform = Platform(device["platform"])
    kinds = DEVICE_KINDS[platform]
    if device.setdefault("provider", kinds[0]) not in kinds:
        errors.add((path, "provider"), FieldCode.NOT_ALLOWED, f"{platform} devices are served by {', '.join(kinds)}")
        return
    is_own_service = device["provider"] == kinds[0]
    if platform is Platform.ANDROID and is_own_service:
        device.setdefault("token_kind", TOKEN_KINDS[0])
    elif "token_kind" in device:
        errors.add((path, "token_kind"), FieldCode.NOT_ALLOWED, f"only {Platform.ANDROID} devices have one")
    device["token"] = normal_token(platform, device["token"], (path, "token"), errors, is_own_service=is_own_service)


def normal_token(platform: Platform, token: Any, path: Path, errors: Errors, *, is_own_service: bool = True) -> Any:
    """The token as it is stored. `is_own_service`: False for a third party's, whose tokens are its own."""
    if platform is Platform.WEB:
        return _subscription(token, path, errors)
    if type(token) is not str:
        return errors.add(path, FieldCode.WRONG_TYPE, f"must be a string for {platform}")
    if is_own_service and platform in (Platform.IOS, Platform.MACOS):
        if not _HEX_TOKEN.fullmatch(token):
            return errors.add(path, FieldCode.INVALID_TOKEN, "must be 64 to 200 hexadecimal digits")
        return token.lower()
    most = MAX_TOKEN if is_own_service and platform is Platform.ANDROID else MAX_VENDOR_TOKEN
    if len(token) > most:
        return errors.add(path, FieldCode.TOO_LONG, f"at most {most} characters")
    if not _PRINTABLE.fullmatch(token):
        return errors.add(path, FieldCode.INVALID_TOKEN, "must be printable ASCII without spaces")
    return token


def _subscription(token: Any, path: Path, errors: Errors) -> Any:
    """A browser's PushSubscription (https://w3c.github.io/push-api/), as compact JSON."""
    before = errors.total
    found = _SUBSCRIPTION.parse(token, path, errors)
    if errors.total != before:
        return found
    host = (urlsplit(found["endpoint"]).hostname or "") if is_https_url(found["endpoint"]) else ""
    if not any(host == known or (known.startswith(".") and host.endswith(known)) for known in WEB_PUSH_HOSTS):
        errors.add((path, "endpoint"), FieldCode.INVALID_URL, "must be an https address at a known push service")
    # RFC 8291: an uncompressed P-256 point, and 16 bytes.
    for name, size in (("p256dh", 65), ("auth", 16)):
        if len(_base64url(found["keys"][name])) != size:
            errors.add(((path, "keys"), name), FieldCode.INVALID_TOKEN, f"must be {size} bytes in base64url")
    if errors.total == before and _base64url(found["keys"]["p256dh"])[0] != 4:
        errors.add(((path, "keys"), "p256dh"), FieldCode.INVALID_TOKEN, "must be an uncompressed point")
    keys = {name: found["keys"][name].rstrip("=") for name in ("p256dh", "auth")}
    return json.dumps({"endpoint": found["endpoint"], "keys": keys}, separators=(",", ":"))


def _base64url(text: str) -> bytes:
    text = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""


_SUBSCRIPTION = Shape(
    {
        "endpoint": Text(required=True, min=1, max=2048),
        "keys": Shape({"p256dh": Text(required=True, max=200), "auth": Text(required=True, max=100)}, required=True),
    }
)
_WHO_SERVES = {
    "platform": Choice(Platform, required=True),
    "token": Either({str: Text(min=1), dict: FreeObject()}, required=True),
    "provider": Text(min=1, max=40),
    "token_kind": Choice(TOKEN_KINDS),
}

DEVICE = Shape(
    {
        **_WHO_SERVES,
        "app_id": Text(max=255, pattern=r"[\x21-\x7e]*", says="must be printable ASCII without spaces", nullable=True),
        "apns_environment": Choice(("production", "sandbox"), nullable=True),
        "app_version": Text(max=40, nullable=True),
        "locale": Locale(nullable=True),
    },
    check=_normalise,
)
"""A registration. Parsed: `token` is the text that is stored, `provider` is filled in."""

RAW_DEVICE = Shape(_WHO_SERVES, check=_normalise)
"""A device named in a request to send: `{platform, token, provider?}`."""
