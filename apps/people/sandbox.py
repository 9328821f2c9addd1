"""Which recipients never reach a real provider, whoever sends to them and in which mode."""

from __future__ import annotations

import json
import re
from urllib.parse import urlsplit

from notifier.message import Channel, Platform

EMAIL_DOMAIN = "sandbox.invalid"
WEB_HOST = "push.sandbox.invalid"

_NUMBER = re.compile(r"\+1500555(?:0001|0006|0009|0010|[1-9][0-9]{3})", re.ASCII)
_APPLE_TOKEN = re.compile(r"5a0db0c5(?:0200|0400|0410|0429)[0-9a-f]{52}", re.ASCII | re.IGNORECASE)
_TOKEN = re.compile(r"sandbox-(?:ok|unregistered|throttled|badtoken)-.+", re.ASCII | re.DOTALL)


def is_sandbox_recipient(channel: Channel | str, value: str, platform: Platform | str | None = None) -> bool:
    """`value` in its normal form: address, number, or token (for `web` the subscription as JSON text)."""
    if channel == Channel.EMAIL:
        return value.lower().endswith("@" + EMAIL_DOMAIN)
    if channel == Channel.SMS:
        return _NUMBER.fullmatch(value) is not None
    if platform == Platform.WEB:
        try:
            return bool(urlsplit(json.loads(value)["endpoint"]).hostname == WEB_HOST)
        except (ValueError, KeyError, TypeError):
            return False
    # An Apple device of a third party's service has that vendor's kind of token.
    is_apple = platform in (Platform.IOS, Platform.MACOS)
    return (is_apple and _APPLE_TOKEN.fullmatch(value) is not None) or _TOKEN.fullmatch(value) is not None
