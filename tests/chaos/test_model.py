"""T10: any order of what may happen to a message, one step at a time, against a model that is told nothing."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from apps.notifications import relay as relays
from apps.notifications import ringing
from apps.notifications.ledger import PostgresLedger
from apps.notifications.models import Delivery, Hold, Pending
from apps.notifications.relay import Relay
from apps.notifications.services import holds, receipts
from apps.people import services as people
from apps.providers.models import ProviderAccount
from apps.rest.problems import Problem
from notifier.ledger import Claimed, Result
from notifier.message import Mode
from notifier.outcome import Kind, Outcome, Receipt, ReceiptKind
from notifier.pipeline import given_back, stopped
from notifier.stages.settle import judge
from tests.apps.notifications.world import World, device, person, run
from tests.apps.rest.callers import forget_callers, make_api
from tests.chaos.form import SEED, sized
from tests.chaos.report import Report

EXAMPLES, STEPS = sized((50, 40), (8, 25))
LANES = ("critical", "normal", "bulk")
CHANNELS = ("push", "sms", "email")

# Written down here and not read from the engine: what a state may become, by whatever happens.
PROGRESS = {"sent": {"delivered", "opened", "clicked", "undelivered"}, "delivered": {"opened", "clicked"}}
PROGRESS |= {"opened": {"clicked"}, "clicked": set()}
ARRIVED = {"delivered", "opened", "clicked"}
WAITING_ENDS = {"suppressed", "cancelled", "expired", "dead", "failed", "unknown", "undelivered", "sent"} | ARRIVED
FORWARD = {
    **PROGRESS,
    "queued": WAITING_ENDS | {"retrying"},
    "retrying": WAITING_ENDS,
    "undelivered": ARRIVED | {"sent"},
    "unknown": ARRIVED | {"sent"},
    "dead": ARRIVED | {"sent"},
    **{end: set() for end in ("suppressed", "cancelled", "expired", "failed")},
}
OPEN = {"queued", "retrying"}
_numbers = itertools.count()
steps = Counter[str]()


class Messages(RuleBasedStateMachine):
    """One client, three people, and everything that callers, workers, providers, operators and time may do."""

    sent = Bundle("notifications")
    held = Bundle("claims")
    told = Bundle("results")

    @initialize()
    def begin(self) -> None:
        for table in ("pending", "expansion", "hold", "receiptinbox"):
            run(f"DELETE FROM notifications_{table}")
        forget_callers()
        mark = f"{SEED}-{next(_numbers)}"
        self.api = make_api(f"model-{mark}", Mode.LIVE, is_verified=True, lanes=list(LANES), may_send_inline=True)
        self.client_id = self.api.client.pk
        self.account = ProviderAccount.objects.get(name="mail-main").pk
        self.people = [f"m-{mark}-{number}" for number in range(3)]
        self.emails = [f"m{number}-{mark}@example.com" for number in range(3)]
        for number, (id, email) in enumerate(zip(self.people, self.emails, strict=True)):
            person(id, email=email, phone=f"+1500555{2000 + number}")
            device(id, f"sandbox-ok-{id}")
        self.ledger = PostgresLedger()
        self.relay = Relay()
        self.states: dict[UUID, str] = {}
        self.claim_nos: dict[UUID, int] = {}
        self.opted_out: set[str] = set()
        self.off: set[tuple[str, str]] = set()
        self.suppressed: set[str] = set()
        self.cancelled: set[UUID] = set()
        self.paused: dict[str, Hold] = {}
        self.user_of: dict[UUID, tuple[str, str]] = {}

    # --- callers ----------------------------------------------------------------------------------------------

    @rule(
        target=sent,
        who=st.sets(st.integers(0, 2), min_size=1),
        channels=st.sets(st.sampled_from(CHANNELS), min_size=1),
        lane=st.sampled_from(LANES),
    )
    def send(self, who: set[int], channels: set[str], lane: str) -> UUID:
        body = {
            "template": "shipped",
            "data": {"order": "A-1"},
            "to": [{"user_id": self.people[number]} for number in sorted(who)],
            "channels": sorted(channels),
            "lane": lane,
        }
        answer = self.api.post("/v1/notifications", body)
        assert answer.status_code == 202, answer.content
        id = UUID(answer.json()["id"])
        for delivery, user, channel in run(
            "SELECT d.id, u.external_id, d.channel FROM notifications_delivery d "
            "JOIN people_user u ON u.id = d.user_id WHERE d.notification_id = %s",
            str(id),
        ):
            self.user_of[delivery] = user, channel
        return id

    @rule(id=sent)
    def cancel(self, id: UUID) -> None:
        try:
            holds.cancel_notification(id, client_id=self.client_id, mode="live", by="model")
        except Problem as problem:
            assert problem.code == "invalid-state"
            return
        self.cancelled.add(id)

    # --- people -----------------------------------------------------------------------------------------------

    @rule(number=st.integers(0, 2), allows=st.booleans())
    def choose_all(self, number: int, allows: bool) -> None:
        people.set_preferences(self.people[number], everything=allows)
        (self.opted_out.discard if allows else self.opted_out.add)(self.people[number])

    @rule(number=st.integers(0, 2), channel=st.sampled_from(CHANNELS), is_on=st.booleans())
    def choose_one(self, number: int, channel: str, is_on: bool) -> None:
        people.set_preferences(self.people[number], choices={"orders": {channel: is_on}})
        (self.off.discard if is_on else self.off.add)((self.people[number], channel))

    @rule(number=st.integers(0, 2))
    def suppress(self, number: int) -> None:
        people.suppress("email", self.emails[number], "manual", source="model")
        self.suppressed.add(self.people[number])

    # --- operators --------------------------------------------------------------------------------------------

    @rule(channel=st.sampled_from(CHANNELS))
    def pause(self, channel: str) -> None:
        self.paused[channel] = holds.pause("channel", channel, by="model")

    @rule(channel=st.sampled_from(CHANNELS))
    def lift(self, channel: str) -> None:
        if hold := self.paused.pop(channel, None):
            holds.lift(hold)

    # --- workers ----------------------------------------------------------------------------------------------

    @rule(target=held, channel=st.sampled_from(CHANNELS), lane=st.sampled_from((*LANES, "retry")), rung=st.booleans())
    def claim(self, channel: str, lane: str, rung: bool) -> Any:
        if rung:
            ids = list(Pending.objects.filter(channel=channel, lane=lane).values_list("id", flat=True))
            claimed = list(self.ledger.claim(ids, lease_s=60)) if ids else []
            for id in ids:
                claimed += self.ledger.claim([id], lease_s=60, alone=True)
        else:
            claimed = list(self.ledger.top_up(channel, lane, 100, lease_s=60))
        return self._taken(claimed)

    @rule(target=held, claimed=held)
    def look_again(self, claimed: Claimed) -> Any:
        """What waited in memory: its gates are read again before it goes out."""
        return self._taken(self.ledger.recheck([claimed]))

    def _taken(self, claimed: list[Claimed]) -> Any:
        assert len({each.delivery_id for each in claimed}) == len(claimed), "claimed twice at once"
        for each in claimed:
            if each.stop is None:
                self._may_be_sent(each)
            else:
                self.ledger.record([stopped(each, each.stop)])
        return multiple(*[each for each in claimed if each.stop is None])

    def _may_be_sent(self, claimed: Claimed) -> None:
        user, channel = self.user_of[claimed.delivery_id]
        assert user not in self.opted_out
        assert (user, channel) not in self.off
        assert channel != "email" or user not in self.suppressed
        assert claimed.notification_id not in self.cancelled
        assert channel not in self.paused
        assert claimed.expires_at > time.time() - 1

    @rule(target=told, claimed=held, kind=st.sampled_from(Kind))
    def finish(self, claimed: Claimed, kind: Kind) -> Result:
        """The provider's word on one claim: the latest, or one whose lease was taken away long ago."""
        outcome = Outcome(kind, provider_ref=f"ref-{claimed.delivery_id}-{claimed.claim_no}")
        now = time.time()
        result = Result(claimed, judge(claimed, outcome), outcome, self.account, started_at=now - 0.1, ended_at=now)
        self._record(result)
        return result

    @rule(target=told, claimed=held)
    def give_back(self, claimed: Claimed) -> Result:
        result = given_back(claimed)
        self._record(result)
        return result

    @rule(result=told)
    def finish_again(self, result: Result) -> None:
        """A record repeated after a COMMIT whose answer was lost."""
        self._record(result)

    def _record(self, result: Result) -> None:
        id, claim_no = result.claimed.delivery_id, result.claimed.claim_no
        before = self._row(id)
        self.ledger.record([result])
        if before[0] != claim_no or before[1] is None:
            assert self._row(id) == before, "a result behind the fence changed the delivery"

    def _row(self, id: UUID) -> tuple[int | None, Any, str]:
        """(fence, lease, state); a fence of None: nothing is to be sent any more."""
        [row] = run(
            "SELECT p.claim_no, p.lease_until, d.state FROM notifications_delivery d "
            "LEFT JOIN notifications_pending p ON p.id = d.id WHERE d.id = %s",
            str(id),
        )
        return row

    # --- providers, afterwards --------------------------------------------------------------------------------

    @rule(
        claimed=held,
        kind=st.sampled_from([kind for kind in ReceiptKind if kind not in ("stopped", "started", "inbound")]),
        event=st.integers(0, 3),
    )
    def receipt(self, claimed: Claimed, kind: ReceiptKind, event: int) -> None:
        received = Receipt(
            f"{claimed.delivery_id}-{kind}-{event}",
            kind,
            at=datetime.now(UTC),
            delivery_id=claimed.delivery_id,
            claim_no=claimed.claim_no,
        )
        receipts.keep(self.account, [received])
        receipts.settle_due()
        if kind in (ReceiptKind.COMPLAINED, ReceiptKind.UNSUBSCRIBED):
            self._learn_suppressions()

    def _learn_suppressions(self) -> None:
        """A complaint suppresses the address, when it was followed: the model reads whose."""
        for user, channel in run(
            "SELECT DISTINCT u.external_id, s.channel FROM people_suppression s JOIN people_address a "
            "ON a.value_hash = s.address_hash AND a.channel = s.channel JOIN people_user u ON u.id = a.user_id "
            "WHERE u.external_id = ANY (%s::text[])",
            self.people,
        ):
            if channel == "email":
                self.suppressed.add(user)

    # --- time -------------------------------------------------------------------------------------------------

    @rule()
    def everything_falls_due(self) -> None:
        run("UPDATE notifications_pending SET due_at = now(), wake_at = now() WHERE lease_until IS NULL")
        run("UPDATE notifications_receiptinbox SET wake_at = now() WHERE wake_at IS NOT NULL")
        receipts.settle_due()

    @rule(claimed=held)
    def worker_dies(self, claimed: Claimed) -> None:
        """Its lease is over; the relay gives the row back, or ends what killed five."""
        run(
            "UPDATE notifications_pending SET lease_until = now() - interval '1 s', wake_at = now() - interval '1 s' "
            "WHERE id = %s AND lease_until IS NOT NULL",
            str(claimed.delivery_id),
        )
        self.relay.tick()

    @rule(claimed=held)
    def message_expires(self, claimed: Claimed) -> None:
        id = str(claimed.delivery_id)
        run("UPDATE notifications_delivery SET expires_at = now() - interval '2 s' WHERE id = %s", id)
        run(
            "UPDATE notifications_pending SET due_at = now(), wake_at = now() WHERE id = %s AND lease_until IS NULL", id
        )

    @rule()
    def tick(self) -> None:
        self.relay.tick()

    # --- what must always hold --------------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        steps["steps"] += 1
        if hasattr(self, "states"):
            self._no_state_moved_backwards()
            self._what_is_open_is_pending_and_nothing_else_is()
            self._accepted_is_ended_plus_in_flight()

    def _no_state_moved_backwards(self) -> None:
        for delivery in Delivery.objects.filter(client_id=self.client_id):
            old = self.states.get(delivery.pk)
            assert old in (None, delivery.state) or delivery.state in FORWARD[old], f"{old} -> {delivery.state}"
            assert (delivery.ended_at is None) == (delivery.state in OPEN)
            self.states[delivery.pk] = delivery.state

    def _what_is_open_is_pending_and_nothing_else_is(self) -> None:
        waiting = {row.pk: row.claim_no for row in Pending.objects.filter(client_id=self.client_id)}
        assert set(waiting) == {id for id, state in self.states.items() if state in OPEN}
        for id, claim_no in waiting.items():
            assert claim_no >= self.claim_nos.get(id, 0), "the fence was lowered"
            self.claim_nos[id] = claim_no

    def _accepted_is_ended_plus_in_flight(self) -> None:
        counts: Counter[str] = Counter()
        for old, new, n in run(
            "SELECT from_state, to_state, sum(n)::int FROM notifications_tally WHERE client_id = %s GROUP BY 1, 2",
            self.client_id,
        ):
            counts[new] += n
            counts[old] -= n
        assert -counts.pop("", 0) == len(self.states)
        assert +counts == Counter(self.states.values())


@pytest.mark.django_db(transaction=True)
def test_nothing_that_may_happen_breaks_what_always_holds(monkeypatch: pytest.MonkeyPatch, report: Report) -> None:
    for name in ("publish_deliveries", "publish_expansions", "publish_receipts", "publish_canaries"):
        monkeypatch.setattr(ringing, name, lambda *_, **__: None)  # no worker listens here: the model is the worker
    # The tests' database was started a moment ago; a real one has been up for longer than its leases.
    monkeypatch.setattr(relays, "_PICK", relays._PICK.replace("pg_postmaster_start_time()", "'-infinity'::timestamptz"))
    forget_callers()
    World.make(Mode.LIVE)
    steps.clear()
    run_machine(
        seed(SEED)(Messages),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    report.add("T10 model", steps=steps["steps"], examples=EXAMPLES)
