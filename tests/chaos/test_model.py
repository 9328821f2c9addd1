"""T10: any order of what may happen to a message, one step at a time, against a model that is told nothing."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
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
from tests.chaos.form import SEED, SHORT, sized
from tests.chaos.report import Report

SHRINK = os.environ.get("SHRINK", "") not in ("", "0")  # a shorter failing example, for minutes of work
EXAMPLES, STEPS = sized((90, 60), (12, 40))
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
    # What arrived, arrived: a receipt belongs to a try that was made, whatever else became of the delivery.
    **{end: ARRIVED for end in ("suppressed", "cancelled", "expired", "failed", "undelivered")},
    **{end: ARRIVED | {"sent"} for end in ("unknown", "dead")},
}
OPEN = {"queued", "retrying"}
MOST_DELIVERIES = 18  # in one example: enough to be mixed up, few enough to be met again
MOST_CANCELS = 2  # else little is left to be sent
STEPS_PROMISED = 2_000  # of the full form
OPT_OUTS = {"global_opt_out", "category_opt_out"}
MOSTLY = st.sampled_from((True, True, True, False))
_numbers = itertools.count()
seen = Counter[str]()
refused = Counter[str]()  # claims that an opt-out stopped, by the step that took them


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
        example = next(_numbers)
        mark = f"{SEED}-{example}"
        self.api = make_api(f"model-{mark}", Mode.LIVE, is_verified=True, lanes=list(LANES), may_send_inline=True)
        self.client_id = self.api.client.pk
        self.account = ProviderAccount.objects.get(name="mail-main").pk
        self.people = [f"m-{mark}-{number}" for number in range(3)]
        self.emails = [f"m{number}-{mark}@example.com" for number in range(3)]
        for number, (id, email) in enumerate(zip(self.people, self.emails, strict=True)):
            person(id, email=email, phone=f"+1500555{1000 + (3 * example + number) % 9000}")
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

    @precondition(lambda self: len(self.user_of) < MOST_DELIVERIES)
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
            "JOIN people_user u ON u.id = d.user_id WHERE d.notification_id = %s ORDER BY 2, 3",
            str(id),
        ):
            self.user_of[delivery] = user, channel
        return id

    @precondition(lambda self: len(self.cancelled) < MOST_CANCELS)
    @rule(id=consumes(sent))
    def cancel(self, id: UUID) -> None:
        try:
            holds.cancel_notification(id, client_id=self.client_id, mode="live", by="model")
        except Problem as problem:
            assert problem.code == "invalid-state"
            return
        self.cancelled.add(id)

    # --- people and operators ---------------------------------------------------------------------------------

    @rule(number=st.integers(0, 2), channel=st.sampled_from(CHANNELS), allows=MOSTLY, everything=st.booleans())
    def choose(self, number: int, channel: str, allows: bool, everything: bool) -> None:
        self._choose(self.people[number], channel, allows, everything)

    def _choose(self, who: str, channel: str, allows: bool, everything: bool) -> None:
        if everything:
            people.set_preferences(who, everything=allows)
            (self.opted_out.discard if allows else self.opted_out.add)(who)
        else:
            people.set_preferences(who, choices={"orders": {channel: allows}})
            (self.off.discard if allows else self.off.add)((who, channel))

    @rule(is_paused=st.booleans(), suppresses=st.booleans())
    def intervene(self, is_paused: bool, suppresses: bool) -> None:
        """An operator stops and resumes a channel; one person's mailbox is put on the list."""
        if suppresses:
            people.suppress("email", self.emails[2], "manual", source="model")
            self.suppressed.add(self.people[2])
        elif is_paused:
            self.paused["sms"] = holds.pause("channel", "sms", by="model")
        elif hold := self.paused.pop("sms", None):
            holds.lift(hold)

    # --- workers ----------------------------------------------------------------------------------------------

    @rule(target=held, lane=st.integers(0, 11), most=st.integers(1, 4))
    def claim(self, lane: int, most: int) -> Any:
        """A shift that was rung: alone for what killed a worker, as the relay rings it."""
        return self._claim(self._waiting(lane), most)

    @rule(target=held, lane=st.integers(0, 11), tops_up=st.booleans(), everything=st.booleans())
    def claim_after_an_opt_out(self, lane: int, tops_up: bool, everything: bool) -> Any:
        """Whoever waits longest wants no more when the shift was rung already, and is back for the next."""
        rows = self._waiting(lane)
        if not rows:
            return multiple()
        with self._opted_out(rows[0][0], everything):
            return self._top_up(rows) if tops_up else self._claim(rows, most=4)

    @contextlib.contextmanager
    def _opted_out(self, delivery: UUID, everything: bool) -> Iterator[None]:
        user, channel = self.user_of[delivery]
        self._choose(user, channel, allows=False, everything=everything)
        yield
        self._choose(user, channel, allows=True, everything=everything)

    def _claim(self, rows: list[tuple[UUID, str, str, int]], most: int) -> Any:
        claimed = list(self.ledger.claim([id for id, _, _, _ in rows[:most]], lease_s=60)) if rows else []
        for id, _, _, crashes in rows:
            if crashes:
                claimed += self.ledger.claim([id], lease_s=60, alone=True)
        return self._taken("claim", claimed)

    @rule(target=held, lane=st.integers(0, 11))
    def top_up(self, lane: int) -> Any:
        return self._top_up(self._waiting(lane))

    def _top_up(self, rows: list[tuple[UUID, str, str, int]]) -> Any:
        found = self.ledger.take([], rows[0][1], [rows[0][2]], 100, lease_s=60)[0] if rows else []
        return self._taken("top-up", found)

    def _waiting(self, number: int) -> list[tuple[UUID, str, str, int]]:
        """(id, channel, lane, crashes) of what is due in one of the lanes that hold something, oldest first."""
        rows = run(
            "SELECT id, channel, lane, crashes FROM notifications_pending WHERE due_at <= now() AND lease_until IS NULL"
        )
        lanes = sorted({row[1:3] for row in rows})
        age = {id: place for place, id in enumerate(self.user_of)}
        wanted = [row for row in rows if lanes and row[1:3] == lanes[number % len(lanes)]]
        return sorted(wanted, key=lambda row: age[row[0]])

    @rule(target=held, claimed=consumes(held), opts_out=st.booleans())
    def look_again(self, claimed: Claimed, opts_out: bool) -> Any:
        """What waited in memory: its gates are read again before it goes out."""
        with self._opted_out(claimed.delivery_id, False) if opts_out else contextlib.nullcontext():
            return self._taken("look again", self.ledger.recheck([claimed]))

    def _taken(self, step: str, claimed: list[Claimed]) -> Any:
        assert len({each.delivery_id for each in claimed}) == len(claimed), "claimed twice at once"
        for each in claimed:
            if each.stop is None:
                self._may_be_sent(each)
            else:
                refused[step] += each.stop.reason in OPT_OUTS
                self.ledger.record([stopped(each, each.stop)])
        age = list(self.user_of)
        return multiple(*sorted((c for c in claimed if c.stop is None), key=lambda c: age.index(c.delivery_id)))

    def _may_be_sent(self, claimed: Claimed) -> None:
        user, channel = self.user_of[claimed.delivery_id]
        assert user not in self.opted_out
        assert (user, channel) not in self.off
        assert channel != "email" or user not in self.suppressed
        assert claimed.notification_id not in self.cancelled
        assert channel not in self.paused
        assert claimed.expires_at > time.time() - 1

    @rule(target=told, claimed=consumes(held), kind=st.sampled_from((*Kind, None, *[Kind.ACCEPTED] * 4)))
    def finish(self, claimed: Claimed, kind: Kind | None) -> Result:
        """The provider's word on one claim, or none: given back. Perhaps long after its lease was taken away."""
        return self._finish(claimed, kind)

    @rule(target=told, lane=st.integers(0, 11))
    def whole_shift(self, lane: int) -> Any:
        """As it mostly goes: claimed, taken by the provider, written down."""
        claimed = self._claim(self._waiting(lane), most=2)
        return multiple(*[self._finish(each, Kind.ACCEPTED) for each in claimed.values])

    def _finish(self, claimed: Claimed, kind: Kind | None) -> Result:
        if kind is None:
            result = given_back(claimed)
        else:
            outcome = Outcome(kind, provider_ref=f"ref-{claimed.delivery_id}-{claimed.claim_no}")
            now = time.time()
            result = Result(claimed, judge(claimed, outcome), outcome, self.account, started_at=now - 0.1, ended_at=now)
        self._record(result)
        return result

    @rule(result=told)
    def finish_again(self, result: Result) -> None:
        """A record repeated after a COMMIT whose answer was lost."""
        self._record(result)

    def _record(self, result: Result) -> None:
        before = self._row(result.claimed.delivery_id)
        self.ledger.record([result])
        # Time passes here when a step says so, and not while the steps run: each run of an example is the same.
        run(
            "UPDATE notifications_pending SET due_at = now() + interval '1 h' "
            "WHERE lease_until IS NULL AND due_at > now()"
        )
        claim_no, is_owed, _, _ = before
        if claim_no != result.claimed.claim_no or not is_owed:
            assert self._row(result.claimed.delivery_id) == before, "what came too late, or twice, changed the delivery"

    def _row(self, id: UUID) -> tuple[int | None, bool, int, str]:
        """(fence, whether a result is owed, tries, state). The fence is None when nothing is to be sent any more.

        A lease that was taken away leaves its result owed: it counts until somebody else claims the row.
        """
        [row] = run(
            "SELECT p.claim_no, p.lease_until IS NOT NULL OR p.crashes > 0, p.tries, d.state "
            "FROM notifications_delivery d LEFT JOIN notifications_pending p ON p.id = d.id WHERE d.id = %s",
            str(id),
        )
        return row

    # --- providers, afterwards --------------------------------------------------------------------------------

    @rule(
        of=st.one_of(held, told, told),
        kind=st.sampled_from([kind for kind in ReceiptKind if kind not in ("stopped", "started", "inbound")]),
        event=st.integers(0, 3),
    )
    def receipt(self, of: Claimed | Result, kind: ReceiptKind, event: int) -> None:
        claimed = of.claimed if isinstance(of, Result) else of
        received = Receipt(
            f"{claimed.delivery_id}-{kind}-{event}",
            kind,
            at=datetime.now(UTC),
            delivery_id=claimed.delivery_id,
            claim_no=claimed.claim_no,
        )
        run("UPDATE notifications_receiptinbox SET wake_at = now() + interval '1 h' WHERE wake_at IS NOT NULL")
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

    @rule(falls_due=MOSTLY)
    def time_passes(self, falls_due: bool) -> None:
        if falls_due:
            run("UPDATE notifications_pending SET due_at = now(), wake_at = now() WHERE lease_until IS NULL")
            run("UPDATE notifications_receiptinbox SET wake_at = now() WHERE wake_at IS NOT NULL")
            receipts.settle_due()
        self.relay.tick()

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

    # --- what must always hold --------------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        seen["steps"] += 1
        if hasattr(self, "states"):
            self._no_state_moved_backwards()
            self._what_is_open_is_pending_and_nothing_else_is()
            self._accepted_is_ended_plus_in_flight()

    def _no_state_moved_backwards(self) -> None:
        for delivery in Delivery.objects.filter(client_id=self.client_id):
            old = self.states.get(delivery.pk)
            assert old in (None, delivery.state) or delivery.state in FORWARD[old], f"{old} -> {delivery.state}"
            assert (delivery.ended_at is None) == (delivery.state in OPEN)
            if old != delivery.state:
                seen[f"{old or 'new'}->{delivery.state}"] += 1
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
    monkeypatch.setattr(relays, "RESTART_GRACE_S", 0.0)
    forget_callers()
    World.make(Mode.LIVE)
    seen.clear()
    refused.clear()
    run_machine(
        seed(SEED)(Messages),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink] if SHRINK else [Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    steps = seen.pop("steps")
    report.add("T10 model", steps=steps, examples=EXAMPLES, stopped_for_an_opt_out=refused, moves=seen)
    assert any(move.startswith(("queued->", "retrying->")) for move in seen), "nothing was ever claimed"
    assert refused.total(), "no opt-out ever stopped anything"
    if not SHORT:
        assert steps >= STEPS_PROMISED
        assert seen["queued->sent"], "nothing was ever sent"
        assert all(refused[step] for step in ("claim", "top-up", "look again")), "one of the gates was never closed"
