"""Which texts are email addresses: what the big mail services take, without quoted local parts."""

from __future__ import annotations

import re

_ATOM = r"[^\s@<>()\[\],;:\\\"\x00-\x1f]{1,64}"
_LABEL_END = r"[A-Za-z0-9\u0080-\U0010ffff]"
_LABELS = r"[A-Za-z0-9.\u0080-\U0010ffff-]{0,253}"
_MAILBOX = re.compile(rf"{_ATOM}@{_LABEL_END}(?:{_LABELS}{_LABEL_END})?\Z")


def is_mailbox(text: str) -> bool:
    if len(text) > 254 or _MAILBOX.match(text) is None:
        return False
    local, _, domain = text.partition("@")
    return ".." not in text and not local.startswith(".") and not local.endswith(".") and ".-" not in domain
