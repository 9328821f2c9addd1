"""Ids, states, queues, array literals, and the gates' order."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notifier import queues
from notifier.ids import delivery_id, range_of, uuid7
from notifier.lifecycle import ENDS, OPEN, State, advance, may_move
from notifier.message import Channel, Lane
from notifier.stages.gates import GATES, Facts, decide


def test_ids_grow_with_time_and_do_not_repeat() -> None:
    ids = [uuid7(1_700_000_000_000 + n) for n in range(1000)]
    assert ids == sorted(ids)
    assert len({uuid7(1) for _ in range(10_000)}) == 10_000
    assert all(id.version == 7 and id.variant == "specified in RFC 4122" for id in ids)


def test_a_derived_id_is_the_same_each_time_and_lies_in_the_range_of_its_base() -> None:
    base = uuid7()
    first = delivery_id(base, "7", "push", "abc")
    assert first == delivery_id(base, "7", "push", "abc")
    lo, hi = range_of(base)
    assert lo <= first <= hi
    assert first.version == 7
    parts = [("7", "push", "ab"), ("7", "pusha", "b"), ("7", "sms", "abc"), ("8", "push", "abc")]
    assert len({delivery_id(base, *part) for part in parts} | {first}) == 5
    assert delivery_id(uuid7(), "7", "push", "abc") != first


@given(st.sampled_from(list(State)), st.lists(st.sampled_from(list(State)), max_size=30))
def test_whatever_happens_a_state_reached_is_never_left_backwards(start: State, events: list[State]) -> None:
    rank = {State.SENT: 1, State.DELIVERED: 2, State.OPENED: 3, State.CLICKED: 4}
    state, reached = start, rank.get(start, 0)
    for event in events:
        state = advance(state, event)
        reached = max(reached, rank.get(state, 0))
        if state in rank:
            assert rank[state] == reached
        if state in OPEN:
            assert start in OPEN


def test_what_is_suppressed_cancelled_expired_or_failed_stays_so_unless_it_arrived_after_all() -> None:
    arrived = {State.DELIVERED, State.OPENED, State.CLICKED}
    for state in (State.SUPPRESSED, State.CANCELLED, State.EXPIRED, State.FAILED):
        assert {other for other in State if may_move(state, other)} == arrived


def test_a_late_receipt_shows_that_it_arrived_after_all() -> None:
    for state in (State.UNKNOWN, State.DEAD, State.UNDELIVERED):
        assert advance(state, State.DELIVERED) is State.DELIVERED
    assert advance(State.DELIVERED, State.UNDELIVERED) is State.DELIVERED
    assert advance(State.UNDELIVERED, State.SENT) is State.UNDELIVERED
    assert advance(State.UNKNOWN, State.SENT) is State.SENT
    assert advance(State.SENT, State.UNDELIVERED) is State.UNDELIVERED
    assert set(State) == OPEN | ENDS


def test_each_channel_has_a_queue_for_each_lane_and_one_for_retries() -> None:
    assert len(queues.DELIVERY_QUEUES) == len(Channel) * (len(Lane) + 1)
    for queue in queues.DELIVERY_QUEUES:
        channel, lane = queues.channel_and_lane(queue)
        assert queues.queue_for(channel, lane) == queue
    with pytest.raises(ValueError, match="not a delivery queue"):
        queues.channel_and_lane(queues.CORE)


def test_the_first_gate_that_says_no_is_the_one_that_speaks() -> None:
    everything_wrong = Facts(
        mode="live",
        channel="email",
        is_client_active=False,
        user_exists=False,
        hold_action="cancel",
        hold_scope="client",
        is_expired=True,
        is_opted_out=True,
        suppressed_by="bounce",
        target="retired",
    )
    mended = {
        "exists": {"user_exists": True},
        "mode": {"is_client_active": True, "is_client_verified": True},
        "hold": {"hold_action": ""},
        "expiry": {"is_expired": False},
        "preference": {"is_opted_out": False},
        "suppression": {"suppressed_by": ""},
        "address": {"target": "active"},
    }
    values = {name: getattr(everything_wrong, name) for name in Facts.__dataclass_fields__}
    seen = []
    for name, _ in GATES:
        stop = decide(Facts(**values))
        if stop is not None and stop.gate == name:
            seen.append(name)
        values |= mended[name]
    assert decide(Facts(**values)) is None
    # What is over is not kept waiting by a pause, so a cancel under an expiry is the expiry's.
    assert seen == ["exists", "mode", "expiry", "preference", "suppression", "address"]


def test_mandatory_categories_pass_every_preference_and_no_suppression() -> None:
    facts = Facts("live", "sms", is_mandatory=True, is_opted_out=True, preference=False, is_on_by_default=False)
    assert decide(facts) is None
    suppressed = decide(Facts("live", "sms", is_mandatory=True, suppressed_by="stop"))
    assert suppressed is not None and suppressed.reason == "suppressed_stop"


def test_ids_stay_uuids_through_their_text() -> None:
    id = uuid7()
    assert UUID(str(id)) == id
