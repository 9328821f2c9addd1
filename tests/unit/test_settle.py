"""What becomes of a delivery after one try: the whole table."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from notifier.ids import uuid7
from notifier.ledger import Claimed
from notifier.lifecycle import State
from notifier.message import Channel, Lane, Mode
from notifier.outcome import Kind, Outcome, Scope
from notifier.stages.settle import LEASE_S, MAX_TRIES, SCHEDULE_S, backoff_s, judge, may_duplicate


def claimed(**values: Any) -> Claimed:
    base = Claimed(
        delivery_id=uuid7(),
        claim_no=1,
        notification_id=UUID(int=1),
        client_id=1,
        mode=Mode.LIVE,
        channel=Channel.EMAIL,
        lane=Lane.NORMAL,
        queue_lane="normal",
        category_id=1,
        campaign_id=None,
        template_version_id=1,
        state=State.QUEUED,
        tries=0,
        crashes=0,
        expires_at=0.0,
        lease_ends=0.0,
        claimed_at=0.0,
        may_duplicate=True,
        address=None,
        address_id=None,
        device_id=None,
        device_provider="",
        locale="en",
        last_account_id=None,
        collapse_key="",
        data={},
        options={},
    )
    return replace(base, **values)


@pytest.mark.parametrize("kind", [Kind.UNAVAILABLE, Kind.UNCERTAIN])
def test_a_try_that_met_an_account_that_answers_nobody_counts_and_waits_no_longer_than_that_is_left_alone(
    kind: Kind,
) -> None:
    late = claimed(state=State.RETRYING, tries=5)
    away = judge(late, Outcome(kind), is_away=True)
    own = judge(late, Outcome(kind))
    assert (away.state, away.is_counted, away.queue_lane) == (own.state, own.is_counted, own.queue_lane)
    assert 10 <= (away.retry_in_s or 0) <= 20 < 1800 <= (own.retry_in_s or 0)
    first = judge(claimed(), Outcome(kind), is_away=True)
    assert (first.retry_in_s or 0) <= 5, "a shorter gap stays"
    last = judge(claimed(tries=MAX_TRIES[Lane.NORMAL] - 1), Outcome(kind), is_away=True)
    assert last.state is State.DEAD and last.retry_in_s is None


@pytest.mark.parametrize(
    ("kind", "state", "waits", "counted"),
    [
        (Kind.ACCEPTED, State.SENT, False, False),
        (Kind.THROTTLED, State.QUEUED, True, False),
        (Kind.UNAVAILABLE, State.RETRYING, True, True),
        (Kind.UNCERTAIN, State.RETRYING, True, True),
        (Kind.REJECTED, State.FAILED, False, True),
        (Kind.GONE, State.FAILED, False, True),
        (Kind.MISCONFIGURED, State.QUEUED, True, False),
    ],
)
def test_each_kind_has_its_verdict(kind: Kind, state: State, waits: bool, counted: bool) -> None:
    verdict = judge(claimed(), Outcome(kind))
    assert (verdict.state, verdict.retry_in_s is not None, verdict.is_counted) == (state, waits, counted)


def test_every_kind_is_judged() -> None:
    for kind in Kind:
        for scope in Scope:
            assert judge(claimed(), Outcome(kind, scope)).state in State


@pytest.mark.parametrize(("lane", "queue"), [("critical", "critical"), ("normal", "retry"), ("bulk", "retry")])
def test_counted_retries_leave_the_lane_of_first_tries_except_critical_ones(lane: str, queue: str) -> None:
    assert judge(claimed(lane=Lane(lane), queue_lane=lane), Outcome(Kind.UNAVAILABLE)).queue_lane == queue


def test_a_throttled_message_stays_on_its_queue_and_waits_as_long_as_it_was_told() -> None:
    verdict = judge(claimed(queue_lane="retry", state=State.RETRYING), Outcome(Kind.THROTTLED, retry_after_s=90))
    assert (verdict.queue_lane, verdict.state) == ("retry", State.RETRYING)
    assert verdict.retry_in_s is not None and 90 <= verdict.retry_in_s <= 99


def test_an_uncertain_outcome_is_parked_where_a_duplicate_is_worse_than_a_gap() -> None:
    verdict = judge(claimed(may_duplicate=False), Outcome(Kind.UNCERTAIN, reason="answer_garbled"))
    assert (verdict.state, verdict.reason, verdict.retry_in_s) == (State.UNKNOWN, "answer_garbled", None)


@pytest.mark.parametrize(
    ("lane", "channel", "policy", "allowed"),
    [
        ("critical", "sms", "", True),
        ("normal", "email", "", True),
        ("bulk", "push", "", True),
        ("bulk", "sms", "", False),
        ("bulk", "email", "", False),
        ("bulk", "email", "retry", True),
        ("critical", "sms", "park", False),
    ],
)
def test_the_category_decides_on_duplicates_and_else_lane_and_channel(
    lane: str, channel: str, policy: str, allowed: bool
) -> None:
    assert may_duplicate(Lane(lane), Channel(channel), policy) is allowed


@pytest.mark.parametrize("lane", list(Lane))
def test_tries_are_spent_after_the_lanes_largest_number(lane: Lane) -> None:
    last = claimed(lane=lane, tries=MAX_TRIES[lane] - 1, state=State.RETRYING)
    verdict = judge(last, Outcome(Kind.UNAVAILABLE))
    assert (verdict.state, verdict.reason) == (State.DEAD, "attempts_exhausted")
    assert judge(replace(last, tries=last.tries - 1), Outcome(Kind.UNAVAILABLE)).state is State.RETRYING


@pytest.mark.parametrize("lane", list(Lane))
def test_a_retry_comes_after_half_to_all_of_its_gap(lane: Lane) -> None:
    chance = random.Random(7)
    for tries in range(1, MAX_TRIES[lane] + 1):
        gap = SCHEDULE_S[lane][min(tries, len(SCHEDULE_S[lane])) - 1]
        waits = [backoff_s(lane, tries, chance) for _ in range(200)]
        assert gap / 2 <= min(waits) < max(waits) <= gap
        assert max(waits) - min(waits) > gap / 4


def test_our_own_fault_touches_no_address() -> None:
    verdict = judge(claimed(), Outcome(Kind.MISCONFIGURED, Scope.ACCOUNT, code="InvalidProviderToken"))
    assert not verdict.retire and not verdict.suppress
    assert verdict.waiting == "provider_paused"


def test_a_dead_address_is_retired_and_an_opt_out_at_the_provider_is_suppressed() -> None:
    gone = judge(claimed(channel=Channel.PUSH), Outcome(Kind.GONE))
    assert (gone.retire, gone.suppress, gone.reason) == (True, "", "device_unregistered")
    stopped = judge(claimed(channel=Channel.SMS), Outcome(Kind.REJECTED, opted_out=True))
    assert (stopped.retire, stopped.suppress, stopped.reason) == (False, "stop", "recipient_blocked")


def test_a_lease_outlives_a_call() -> None:
    from notifier.stages.settle import CALL_TIMEOUT_S

    assert all(LEASE_S[lane] >= 3 * CALL_TIMEOUT_S[lane] for lane in Lane)
