"""From what the provider said to what we do: a pure function over a table."""

from __future__ import annotations

import random
from dataclasses import replace

from notifier.ledger import Claimed, Verdict
from notifier.lifecycle import State
from notifier.message import Channel, Lane
from notifier.outcome import Kind, Outcome, Scope
from notifier.queues import retry_lane

SCHEDULE_S: dict[Lane, tuple[float, ...]] = {
    # The gap after the n-th counted try; the last one repeats. A one-time code is worthless after minutes,
    # a newsletter can wait for tomorrow.
    Lane.CRITICAL: (1, 3, 10, 30),
    Lane.NORMAL: (5, 30, 120, 600, 1800, 3600, 7200, 14400),
    Lane.BULK: (60, 300, 1800, 7200, 18_000, 36_000, 36_000, 86_400),
}
MAX_TRIES: dict[Lane, int] = {Lane.CRITICAL: 8, Lane.NORMAL: 12, Lane.BULK: 12}
CALL_TIMEOUT_S: dict[Lane, float] = {Lane.CRITICAL: 5.0, Lane.NORMAL: 10.0, Lane.BULK: 10.0}
LEASE_S: dict[Lane, float] = {Lane.CRITICAL: 15.0, Lane.NORMAL: 60.0, Lane.BULK: 60.0}

THROTTLED_DEFAULT_S = 5.0  # a provider that names no time
AWAY_S = 20.0  # the account answers nobody: that is waited for (see route), not the message's own gap of hours
OUR_FAULT_S = 30.0  # our account is wrong and there is no other: look again then
_MOST_DETAIL = 500

_GONE_REASON = {Channel.PUSH: "device_unregistered", Channel.SMS: "invalid_number", Channel.EMAIL: "address_unknown"}


def may_duplicate(lane: Lane, channel: Channel, policy: str) -> bool:
    """Whether an uncertain outcome may be tried again. `policy` is the category's: "retry", "park" or ""."""
    if policy:
        return policy == "retry"
    return lane is not Lane.BULK or channel is Channel.PUSH  # a second push replaces the first by its collapse key


def backoff_s(lane: Lane, tries: int, chance: random.Random | None = None) -> float:
    """The gap after `tries` counted tries, with jitter: half to all of it, so that what failed together does not
    come back together."""
    gaps = SCHEDULE_S[lane]
    return gaps[min(tries, len(gaps)) - 1] * _jitter(chance)


def _jitter(chance: random.Random | None = None) -> float:
    return (chance or random).uniform(0.5, 1.0)


def judge(claimed: Claimed, outcome: Outcome, *, elsewhere: bool = False, is_away: bool = False) -> Verdict:
    """What becomes of a delivery after one try. Pure but for the jitter.

    `elsewhere`: another account could take it at once. `is_away`: the account answers nobody now, and is held back as
    a whole: its return is waited for, however often this message was tried.
    """
    if outcome.kind is Kind.MISCONFIGURED and outcome.scope is Scope.ACCOUNT and elsewhere:
        # The account is left alone from now on, so the next claim goes to the other one.
        return Verdict(claimed.state, retry_in_s=0.0, queue_lane=claimed.queue_lane)
    verdict = _RULES[outcome.kind](claimed, outcome)
    if is_away and verdict.waiting == "retry_backoff" and verdict.retry_in_s is not None:
        return replace(verdict, retry_in_s=min(verdict.retry_in_s, AWAY_S * _jitter()))
    return verdict


def _accepted(claimed: Claimed, outcome: Outcome) -> Verdict:
    return Verdict(State.SENT)


def _throttled(claimed: Claimed, outcome: Outcome) -> Verdict:
    wait = THROTTLED_DEFAULT_S if outcome.retry_after_s is None else outcome.retry_after_s
    return Verdict(
        claimed.state,
        retry_in_s=max(1.0, wait) * random.uniform(1.0, 1.1),  # noqa: S311 - spreads load, guards nothing
        waiting="provider_throttled",
        queue_lane=claimed.queue_lane,
    )


def _again(claimed: Claimed, outcome: Outcome) -> Verdict:
    tries = claimed.tries + 1
    if tries >= MAX_TRIES[claimed.lane]:
        return Verdict(State.DEAD, "attempts_exhausted", _last_words(outcome), is_counted=True)
    return Verdict(
        State.RETRYING,
        retry_in_s=backoff_s(claimed.lane, tries),
        waiting="retry_backoff",
        is_counted=True,
        queue_lane=retry_lane(claimed.lane),
    )


def _uncertain(claimed: Claimed, outcome: Outcome) -> Verdict:
    if claimed.may_duplicate:
        return _again(claimed, outcome)
    return Verdict(State.UNKNOWN, outcome.reason or "answer_lost", _last_words(outcome), is_counted=True)


def _rejected(claimed: Claimed, outcome: Outcome) -> Verdict:
    if outcome.opted_out:
        return Verdict(State.FAILED, "recipient_blocked", _last_words(outcome), is_counted=True, suppress="stop")
    return Verdict(State.FAILED, outcome.reason or "rejected", _last_words(outcome), is_counted=True)


def _gone(claimed: Claimed, outcome: Outcome) -> Verdict:
    reason = outcome.reason or _GONE_REASON[claimed.channel]
    return Verdict(State.FAILED, reason, _last_words(outcome), is_counted=True, retire=True)


def _misconfigured(claimed: Claimed, outcome: Outcome) -> Verdict:
    """Our fault: no try is burnt and no address touched. Route takes another account if there is one."""
    return Verdict(
        claimed.state,
        retry_in_s=OUR_FAULT_S * random.uniform(0.5, 1.0),  # noqa: S311 - spreads load, guards nothing
        waiting="provider_paused",
        queue_lane=claimed.queue_lane,
    )


_RULES = {
    Kind.ACCEPTED: _accepted,
    Kind.THROTTLED: _throttled,
    Kind.UNAVAILABLE: _again,
    Kind.UNCERTAIN: _uncertain,
    Kind.REJECTED: _rejected,
    Kind.GONE: _gone,
    Kind.MISCONFIGURED: _misconfigured,
}


def _last_words(outcome: Outcome) -> str:
    words = [word for word in (outcome.code, outcome.detail) if word]
    if outcome.http_status:
        words.insert(0, f"HTTP {outcome.http_status}")
    return " ".join(words)[:_MOST_DETAIL]
