"""The gates, in order: whether a delivery may go out, by what is known of it now.

The same function decides when work is laid out, when it is claimed, and when it has waited in memory for a while.
It does not run again for who asks why: what it said then is stored with the delivery.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from notifier.ledger import Stop
from notifier.lifecycle import State

PAUSED_S = 30.0  # a paused delivery is looked at again then; lifting the hold wakes it at once


@dataclass(frozen=True, slots=True)
class Facts:
    """What the gates look at. `None` where a question does not arise (a raw address has no user)."""

    mode: str
    channel: str
    is_client_active: bool = True
    is_client_verified: bool = True
    user_exists: bool | None = None
    is_user_erased: bool = False
    is_sandbox_recipient: bool = False
    hold_scope: str = ""
    hold_action: str = ""
    hold_reason: str = ""
    is_expired: bool = False
    was_tried: bool = False
    was_due: bool = True
    waiting: str = ""
    category: str = ""
    is_mandatory: bool = False
    is_on_by_default: bool = True
    is_opted_out: bool = False
    preference: bool | None = None
    suppressed_by: str = ""
    suppressed_since: str = ""
    target: str = "active"  # active, retired, none, moved, no_content


def decide(facts: Facts) -> Stop | None:
    """The first gate that says no; None: it may go out."""
    for _, gate in GATES:
        stop = gate(facts)
        if stop is not None:
            return stop
    return None


def _exists(facts: Facts) -> Stop | None:
    if facts.user_exists is False:
        return _suppress("exists", "user_not_found")
    if facts.is_user_erased:
        return _suppress("exists", "user_erased")
    return None


def _mode(facts: Facts) -> Stop | None:
    if not facts.is_client_active:
        return Stop("mode", State.CANCELLED, "client_disabled")
    if facts.mode == "live" and not facts.is_client_verified and not facts.is_sandbox_recipient and _is_real(facts):
        return _suppress("mode", "recipient_not_allowed", "an unverified client reaches sandbox recipients only")
    return None


def _is_real(facts: Facts) -> bool:
    return facts.target == "active"


def _hold(facts: Facts) -> Stop | None:
    if not facts.hold_action or facts.is_expired:
        return None
    if facts.hold_action == "cancel":
        return Stop("hold", State.CANCELLED, facts.hold_reason or "by_operator", seen=facts.hold_scope)
    word = "provider_paused" if facts.hold_scope == "account" else f"{facts.hold_scope}_paused"
    return Stop("hold", State.QUEUED, seen=facts.hold_scope, retry_in_s=PAUSED_S, waiting=word)


_OUR_FAULT = {"provider_paused": "provider_misconfigured", "provider_unavailable": "no_provider"}


def _expiry(facts: Facts) -> Stop | None:
    if not facts.is_expired:
        return None
    if facts.was_tried:
        return Stop("expiry", State.DEAD, "attempts_exhausted", "expired after a try")
    if facts.waiting in _OUR_FAULT:
        return Stop("expiry", State.DEAD, _OUR_FAULT[facts.waiting], facts.waiting)
    if not facts.was_due:
        return Stop("expiry", State.EXPIRED, "expired_before_due")
    return Stop("expiry", State.EXPIRED, "expired_waiting", facts.waiting)


def _preference(facts: Facts) -> Stop | None:
    if facts.is_mandatory:
        return None
    seen = {"category": facts.category, "channel": facts.channel}
    if facts.is_opted_out:
        return _suppress("preference", "global_opt_out", seen=seen | {"source": "user"})
    if facts.preference is False:
        detail = f"{facts.category} by {facts.channel}"
        return _suppress("preference", "category_opt_out", detail, seen=seen | {"source": "user"})
    if facts.preference is None and not facts.is_on_by_default:
        detail = f"{facts.category} is off until a person turns it on"
        return _suppress("preference", "not_opted_in", detail, seen=seen | {"source": "default"})
    return None


def _suppression(facts: Facts) -> Stop | None:
    if not facts.suppressed_by:
        return None
    reason = "manual" if facts.suppressed_by == "import" else facts.suppressed_by
    detail = f"{facts.suppressed_by} {facts.suppressed_since}".strip()
    return _suppress("suppression", f"suppressed_{reason}", detail, seen=facts.suppressed_by)


def _address(facts: Facts) -> Stop | None:
    noun = "device" if facts.channel == "push" else "address"
    if facts.target == "none":
        return _suppress("address", f"no_{noun}")
    if facts.target in ("retired", "moved"):
        return _suppress("address", f"{noun}_retired", "now another person's" if facts.target == "moved" else "")
    if facts.target == "no_content":
        return _suppress("address", "no_content", f"the template has no part for {facts.channel}")
    return None


def _suppress(gate: str, reason: str, detail: str = "", seen: Any = None) -> Stop:
    return Stop(gate, State.SUPPRESSED, reason, detail, seen)


GATES: tuple[tuple[str, Callable[[Facts], Stop | None]], ...] = (
    ("exists", _exists),
    ("mode", _mode),
    ("hold", _hold),
    ("expiry", _expiry),
    ("preference", _preference),
    ("suppression", _suppression),
    ("address", _address),
)
