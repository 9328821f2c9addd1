"""A shift on a ledger in memory: what is sent, what is held back, what a fault costs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from notifier import pipeline
from notifier.ledger import Account, Stop
from notifier.lifecycle import State
from notifier.message import Address, Channel, Lane, Message
from notifier.outcome import Kind, Outcome, Scope
from notifier.pipeline import Worker, deliver
from notifier.providers.registry import PROVIDERS, Entry, provider_class
from notifier.stages import dispatch
from notifier.stages.render import Renderer
from tests.fakes import ACCOUNT, FakeProvider, MemoryLedger, claimed, many


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture
def worker(ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setitem(PROVIDERS, "fake", Entry("tests.fakes:FakeProvider", frozenset({Channel.EMAIL, Channel.SMS})))
    provider_class.cache_clear()
    FakeProvider.reset()
    made = Worker.start(ledger, lambda: 1e12 - 100)
    yield made
    made.close(2)
    provider_class.cache_clear()


def states(ledger: MemoryLedger) -> dict[str, int]:
    counts: dict[str, int] = {}
    for result in ledger.results:
        counts[result.verdict.state] = counts.get(result.verdict.state, 0) + 1
    return counts


def test_a_shift_sends_what_it_was_rung_for_and_then_what_else_its_lane_holds(
    worker: Worker, ledger: MemoryLedger
) -> None:
    ledger.waiting = list(many(250))
    assert deliver(worker, "email.normal", [ledger.waiting[0].delivery_id]) == 250
    assert worker.loop.wait_recorded(5)
    assert states(ledger) == {"sent": 250}
    assert len({message.delivery_id for message in FakeProvider.sent}) == 250


def test_never_more_than_a_hundred_are_open_or_unrecorded(worker: Worker, ledger: MemoryLedger) -> None:
    FakeProvider.latency_s = 0.01
    ledger.waiting = list(many(500))
    deliver(worker, "email.normal", [])
    assert worker.loop.wait_recorded(5)
    assert FakeProvider.most_open <= 100
    assert max(ledger.writes) <= 100
    assert worker.loop.slots.used == 0


def test_an_adapter_that_never_ends_its_calls_is_broken_off_and_costs_only_those(
    worker: Worker, ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pipeline.CALL_TIMEOUT_S, Lane.NORMAL, 0.1)
    monkeypatch.setattr(dispatch, "GRACE_S", 0.1)
    ledger.waiting = list(many(12))
    hung = {each.delivery_id for each in ledger.waiting[:3]}
    FakeProvider.hangs = lambda message: message.delivery_id in hung
    deliver(worker, "email.normal", [])
    assert worker.loop.wait_recorded(5)
    uncertain = {r.claimed.delivery_id for r in ledger.results if r.outcome and r.outcome.kind is Kind.UNCERTAIN}
    assert uncertain == hung
    assert {r.outcome.code for r in ledger.results if r.claimed.delivery_id in hung and r.outcome} == {"TimeoutError"}
    assert sum(r.verdict.state is State.SENT for r in ledger.results) == 9
    assert (worker.loop.slots.used, FakeProvider.open_now) == (0, 0)


def test_a_machine_that_stood_still_as_calls_began_costs_no_result_and_no_room(
    worker: Worker, ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pipeline.CALL_TIMEOUT_S, Lane.NORMAL, 0.05)
    monkeypatch.setattr(dispatch, "GRACE_S", 0.05)
    together = dispatch._Together.run

    def standing_still(self: Any, call: Any) -> None:
        together(self, call)
        time.sleep(0.2)  # the loop's timers are due before the call's first step

    monkeypatch.setattr(dispatch._Together, "run", standing_still)
    FakeProvider.latency_s = 0.2
    ledger.waiting = list(many(1))
    deliver(worker, "email.normal", [])
    assert worker.loop.wait_recorded(5)
    assert [result.outcome.kind for result in ledger.results if result.outcome] == [Kind.UNCERTAIN]
    assert worker.loop.slots.used == 0


def test_results_survive_an_outage_of_the_store_and_outlive_their_shift(worker: Worker, ledger: MemoryLedger) -> None:
    ledger.waiting = list(many(30))
    ledger.fail_writes = 3
    deliver(worker, "email.normal", [])
    assert ledger.results == []
    assert worker.loop.wait_recorded(10)
    assert states(ledger) == {"sent": 30}


def test_while_results_cannot_be_written_nothing_more_is_sent_than_fits_in_flight(
    worker: Worker, ledger: MemoryLedger
) -> None:
    ledger.fail_writes = 4  # about 1.5 s
    ledger.waiting = list(many(400))
    shift = threading.Thread(target=deliver, args=(worker, "email.normal", []))
    shift.start()
    time.sleep(0.5)
    assert len(FakeProvider.sent) <= 100
    shift.join(15)
    assert worker.loop.wait_recorded(5)
    assert states(ledger) == {"sent": 400}


def test_what_a_gate_stopped_is_recorded_and_not_sent(worker: Worker, ledger: MemoryLedger) -> None:
    stop = Stop("preference", State.SUPPRESSED, "category_opt_out")
    ledger.waiting = [claimed(1), claimed(2, stop=stop)]
    deliver(worker, "email.normal", [])
    assert worker.loop.wait_recorded(5)
    assert states(ledger) == {"sent": 1, "suppressed": 1}
    assert len(FakeProvider.sent) == 1


def test_rows_that_waited_in_memory_meet_the_gates_again(worker: Worker, ledger: MemoryLedger) -> None:
    stop = Stop("preference", State.SUPPRESSED, "global_opt_out")
    ledger.waiting = [replace(c, claimed_at=0.0) for c in many(3)]
    ledger.on_recheck = lambda c: replace(c, stop=stop)
    deliver(worker, "email.normal", [])
    assert worker.loop.wait_recorded(5)
    assert states(ledger) == {"suppressed": 3}
    assert FakeProvider.sent == []
    assert len(ledger.rechecked) == 3


def test_a_row_with_too_little_lease_left_is_given_back_unsent(worker: Worker, ledger: MemoryLedger) -> None:
    ledger.waiting = [claimed(lease_ends=1e12 - 95)]  # 5 s left, a call takes up to 10
    deliver(worker, "email.normal", [])
    assert worker.loop.wait_recorded(5)
    [result] = ledger.results
    assert (result.verdict.state, result.verdict.retry_in_s, result.verdict.is_counted) == (State.QUEUED, 0.0, False)
    assert FakeProvider.sent == []


def test_a_template_that_cannot_be_rendered_fails_its_own_message_only(worker: Worker, ledger: MemoryLedger) -> None:
    ledger.waiting = [claimed(1), claimed(2, data={}, shares_data=False), claimed(3, template_version_id=9)]
    deliver(worker, "email.normal", [])
    assert worker.loop.wait_recorded(5)
    assert states(ledger) == {"sent": 1, "failed": 2}
    assert {r.verdict.reason for r in ledger.results if r.verdict.state == "failed"} == {"render_error"}


def test_an_adapter_that_raises_costs_its_messages_a_try_and_nobody_else_anything(
    worker: Worker, ledger: MemoryLedger
) -> None:
    def fail(message: Message) -> Outcome:
        if message.address.value.startswith("p0@"):
            raise RuntimeError("a bug")
        return Outcome(Kind.ACCEPTED)

    FakeProvider.script = fail
    ledger.waiting = list(many(3))
    deliver(worker, "email.normal", [])
    assert worker.loop.wait_recorded(5)
    assert states(ledger) == {"retrying": 1, "sent": 2}
    assert worker.loop.slots.used == 0


def test_an_account_that_cannot_work_burns_no_try(worker: Worker, ledger: MemoryLedger) -> None:
    ledger.known_accounts = (replace(ACCOUNT, settings={"nonsense": 1}),)
    ledger.waiting = [claimed()]
    deliver(worker, "email.normal", [])
    assert worker.loop.wait_recorded(5)
    [result] = ledger.results
    assert result.outcome is not None and result.outcome.kind is Kind.MISCONFIGURED
    assert not result.verdict.is_counted


def test_without_an_account_a_message_waits(worker: Worker, ledger: MemoryLedger) -> None:
    ledger.known_accounts = ()
    ledger.waiting = [claimed()]
    deliver(worker, "email.normal", [])
    assert worker.loop.wait_recorded(5)
    [result] = ledger.results
    assert (result.verdict.waiting, result.outcome) == ("provider_paused", None)


def test_a_provider_that_takes_batches_gets_batches(worker: Worker, ledger: MemoryLedger) -> None:
    FakeProvider.batch_size = 40
    sizes: list[int] = []
    original = FakeProvider.send

    async def send(self: FakeProvider, batch: list[Message]) -> list[Outcome]:
        sizes.append(len(batch))
        return await original(self, batch)

    FakeProvider.send = send  # type: ignore[method-assign, assignment]
    try:
        ledger.waiting = list(many(100))
        deliver(worker, "email.normal", [c.delivery_id for c in ledger.waiting])
        assert worker.loop.wait_recorded(5)
    finally:
        FakeProvider.send = original  # type: ignore[method-assign]
    assert sorted(sizes) == [20, 40, 40]


def test_a_row_that_killed_its_worker_is_sent_alone(worker: Worker, ledger: MemoryLedger) -> None:
    poison = claimed(1, crashes=1)
    ledger.waiting = [poison, claimed(2)]
    assert deliver(worker, "email.normal", [poison.delivery_id], alone=True) == 1
    assert [r.claimed.delivery_id for r in ledger.results] == [poison.delivery_id]
    assert len(ledger.waiting) == 1


def test_a_worker_makes_the_accounts_of_its_channels_ready_whatever_comes_of_it(
    worker: Worker, ledger: MemoryLedger
) -> None:
    wrong = replace(ACCOUNT, id=2, name="fake-wrong", settings={"key": "wrong"})
    ledger.known_accounts = (wrong, replace(ACCOUNT, id=3, name="fake-off", is_active=False), ACCOUNT)
    worker.prepare({"push"})
    worker.prepare({"email"})
    ledger.waiting = [claimed(1)]
    assert deliver(worker, "email.normal", []) == 1
    assert worker.loop.wait_recorded(5)
    assert FakeProvider.prepared == ["fake-wrong", "fake-main"]
    assert states(ledger) == {"sent": 1}


def test_a_worker_that_is_to_stop_takes_no_more_and_gives_back_what_it_has(
    worker: Worker, ledger: MemoryLedger
) -> None:
    worker.must_stop = lambda: len(FakeProvider.sent) > 0
    FakeProvider.latency_s = 0.2
    ledger.waiting = list(many(250))
    deliver(worker, "email.normal", [c.delivery_id for c in ledger.waiting])
    assert worker.loop.wait_recorded(5)
    sent = [r for r in ledger.results if r.verdict.state == "sent"]
    back = [r for r in ledger.results if r.outcome is None]
    assert len(sent) == len(FakeProvider.sent) < 250
    assert len(sent) + len(back) == 250
    assert {r.verdict.retry_in_s for r in back} == {0.0}
    assert ledger.waiting == []


def test_when_the_store_goes_away_in_the_middle_what_is_in_memory_is_given_back(
    worker: Worker, ledger: MemoryLedger
) -> None:
    ledger.waiting = [replace(c, claimed_at=0.0) for c in many(150)]

    def away(*_: object) -> list[object]:
        raise ConnectionError("the database is away")

    ledger.recheck = away  # type: ignore[method-assign, assignment]
    with pytest.raises(ConnectionError):
        deliver(worker, "email.normal", [c.delivery_id for c in ledger.waiting])
    assert worker.loop.wait_recorded(5)
    assert len(ledger.results) == 150
    assert worker.loop.slots.used == 0


@pytest.mark.parametrize(("overdue", "given_back"), [(False, 150), (True, 149)])
def test_what_was_in_memory_when_the_process_was_ended_is_given_back_but_for_what_hung(
    worker: Worker, ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch, overdue: bool, given_back: int
) -> None:
    """Overdue: the task's time limit ended it. A lease that ends by itself is what counts a row's deaths."""
    ledger.waiting = list(many(150))
    render, third = Renderer.render, iter((False, False, True))

    def ended(*arguments: Any, **options: Any) -> object:
        if not next(third):
            return render(*arguments, **options)
        if overdue:
            monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + pipeline.SHIFT_S)
        raise SystemExit(-15)

    monkeypatch.setattr(Renderer, "render", ended)
    with pytest.raises(SystemExit):
        deliver(worker, "email.normal", ids := [c.delivery_id for c in ledger.waiting])
    assert worker.loop.wait_recorded(5)
    assert len(ledger.results) == given_back
    hung = set(ids) - {result.claimed.delivery_id for result in ledger.results}
    assert hung == ({ids[2]} if overdue else set())
    assert worker.loop.slots.used == 0


def test_a_lane_full_of_people_who_opted_out_is_worked_through(worker: Worker, ledger: MemoryLedger) -> None:
    stop = Stop("preference", State.SUPPRESSED, "category_opt_out")
    ledger.waiting = [*many(900, stop=stop), claimed(1)]
    deliver(worker, "email.normal", [])
    assert worker.loop.wait_recorded(5)
    assert states(ledger) == {"suppressed": 900, "sent": 1}


def test_a_lane_whose_provider_is_away_is_not_churned_through(worker: Worker, ledger: MemoryLedger) -> None:
    ledger.known_accounts = ()
    ledger.waiting = list(many(5000))
    deliver(worker, "email.normal", [])
    assert worker.loop.wait_recorded(5)
    assert len(ledger.waiting) > 3000


def test_a_shift_for_bulk_takes_first_tries_of_normal_before_it(worker: Worker, ledger: MemoryLedger) -> None:
    bulk = {"lane": Lane.BULK, "queue_lane": "bulk"}
    ledger.waiting = [*many(150, **bulk), *many(5)]
    deliver(worker, "email.bulk", [ledger.waiting[0].delivery_id])
    assert worker.loop.wait_recorded(5)
    order = [result.claimed.lane for result in ledger.results]
    assert len(order) == 155
    assert max(i for i, lane in enumerate(order) if lane is Lane.NORMAL) < 110


# --- route ------------------------------------------------------------------------------------------------------


def test_a_sick_account_is_left_alone_and_probed_until_it_answers(worker: Worker) -> None:
    now = [0.0]
    from notifier.stages.breaker import FAILURES_TO_OPEN, OPEN_S, Breaker

    breaker = Breaker(lambda: now[0])
    for _ in range(FAILURES_TO_OPEN):
        assert breaker.allows()
        breaker.saw(Outcome(Kind.UNAVAILABLE))
    assert breaker.is_open and not breaker.allows()
    now[0] += OPEN_S
    assert breaker.allows() and not breaker.allows()
    breaker.saw(Outcome(Kind.UNCERTAIN))
    now[0] += OPEN_S
    assert not breaker.allows()
    now[0] += OPEN_S
    assert breaker.allows()
    breaker.saw(Outcome(Kind.REJECTED))
    assert breaker.allows() and not breaker.is_open


def test_an_account_that_was_away_for_however_long_is_tried_again_within_ten_seconds() -> None:
    from notifier.stages.breaker import FAILURES_TO_OPEN, Breaker

    now = [0.0]
    breaker = Breaker(lambda: now[0])
    for _ in range(FAILURES_TO_OPEN):
        breaker.saw(Outcome(Kind.UNCERTAIN))
    for _ in range(50):
        refused_at = now[0]
        while not breaker.allows():
            now[0] += 0.5
        assert now[0] - refused_at <= 10
        now[0] += 10  # the probe hangs, too
        breaker.saw(Outcome(Kind.UNCERTAIN))


def test_an_account_that_answers_nothing_is_left_alone_before_its_calls_have_timed_out(worker: Worker) -> None:
    from notifier.stages.route import Router

    now = [0.0]
    router = Router(clock=lambda: now[0])
    router.use([ACCOUNT])
    assert router.pick(claimed()) == ACCOUNT
    now[0] += 60
    for _ in range(29):  # what is asked all at once has had no time to be answered
        assert router.pick(claimed()) == ACCOUNT
    now[0] += 5
    stop = router.pick(claimed())
    assert isinstance(stop, Stop) and stop.waiting == "provider_unavailable"
    for _ in range(20):
        router.breaker(ACCOUNT).saw(Outcome(Kind.UNCERTAIN))  # their time is over: what is known is no news
    now[0] += 5
    assert router.pick(claimed()) == ACCOUNT, "the probe"
    assert isinstance(router.pick(claimed()), Stop)
    router.breaker(ACCOUNT).saw(Outcome(Kind.ACCEPTED))
    assert router.pick(claimed()) == ACCOUNT


def test_a_slow_account_is_none_that_answers_nothing(worker: Worker) -> None:
    from notifier.stages.route import Router

    now = [0.0]
    router = Router(clock=lambda: now[0])
    router.use([ACCOUNT])
    for number in range(500):
        now[0] += 0.1
        assert router.pick(claimed()) == ACCOUNT
        if number % 45 == 44:
            router.breaker(ACCOUNT).saw(Outcome(Kind.ACCEPTED))


def test_what_failed_while_its_account_answers_nobody_waits_for_the_account_and_not_its_own_gap(
    worker: Worker, ledger: MemoryLedger
) -> None:
    FakeProvider.script = lambda message: Outcome(Kind.UNCERTAIN)
    ledger.waiting = list(many(30, tries=5))  # the gap after the sixth try is half an hour and more
    deliver(worker, "email.normal", [])
    assert worker.loop.wait_recorded(5)
    waits = [result.verdict.retry_in_s or 0.0 for result in ledger.results]
    assert sum(wait > 900 for wait in waits) == 9, "until the tenth failure in a row they were the messages' own"
    assert sum(wait <= 20 for wait in waits) == 21


def test_the_longer_an_account_is_away_the_more_rarely_what_waits_for_it_looks_again(worker: Worker) -> None:
    from notifier.stages.breaker import FAILURES_TO_OPEN
    from notifier.stages.route import Router

    now = [0.0]
    router = Router(clock=lambda: now[0])
    router.use([ACCOUNT])
    for _ in range(FAILURES_TO_OPEN):
        router.breaker(ACCOUNT).saw(Outcome(Kind.UNCERTAIN))

    def waits(lane: Lane = Lane.NORMAL) -> list[float]:
        found = [router.pick(claimed(lane=lane)) for _ in range(100)]
        return [stop.retry_in_s or 0.0 for stop in found if isinstance(stop, Stop)]

    assert max(waits()) <= 7.5
    while now[0] < 300:
        now[0] += 10
        if router.breaker(ACCOUNT).allows():
            router.breaker(ACCOUNT).saw(Outcome(Kind.UNCERTAIN))
    assert min(waits()) >= 12
    assert max(waits()) <= 25, "with a probe of 10 s and 10 s until the next: within a minute of its return"
    assert max(waits(Lane.CRITICAL)) <= 7.5, "these are few, and urgent"
    now[0] += 10
    assert router.pick(claimed()) == ACCOUNT
    assert max(waits()) <= 7.5, "what came with the probe goes as soon as that is answered"
    router.breaker(ACCOUNT).saw(Outcome(Kind.ACCEPTED))
    assert router.pick(claimed()) == ACCOUNT


def test_a_refused_credential_is_the_accounts_and_a_dead_address_is_nobodys(worker: Worker) -> None:
    from notifier.stages.breaker import Breaker

    breaker = Breaker(lambda: 0.0)
    breaker.saw(Outcome(Kind.MISCONFIGURED, Scope.ADDRESS))
    breaker.saw(Outcome(Kind.MISCONFIGURED, Scope.SENDER))
    for _ in range(100):
        breaker.saw(Outcome(Kind.GONE))
    assert not breaker.is_open
    breaker.saw(Outcome(Kind.MISCONFIGURED, Scope.ACCOUNT))
    assert breaker.is_open


def test_test_mode_and_sandbox_recipients_reach_sandbox_accounts_and_nobody_else_does(worker: Worker) -> None:
    from notifier.message import Mode

    sandbox = Account(id=2, name="fake-sandbox", kind="fake", settings={}, is_sandbox=True, revision="1")
    worker.router.use([ACCOUNT, sandbox])
    address = claimed().address
    assert address is not None
    assert worker.router.pick(claimed()) == ACCOUNT
    assert worker.router.pick(claimed(mode=Mode.TEST)) == sandbox
    assert worker.router.pick(claimed(address=replace(address, is_sandbox=True))) == sandbox


def test_a_retry_goes_to_another_account_where_there_is_one(worker: Worker) -> None:
    other = replace(ACCOUNT, id=3, name="fake-other")
    worker.router.use([ACCOUNT, other])
    picks = [worker.router.pick(claimed(state=State.RETRYING, last_account_id=1)) for _ in range(20)]
    assert all(pick == other for pick in picks)
    assert len({worker.router.pick(claimed()).name for _ in range(50)}) == 2  # type: ignore[union-attr]


def test_a_device_goes_to_the_provider_that_issued_its_token(worker: Worker) -> None:
    push = claimed(channel=Channel.PUSH, device_provider="fake")
    worker.router.use([ACCOUNT])
    assert isinstance(worker.router.pick(push), Stop)


def test_a_text_message_goes_to_an_account_that_serves_its_numbers_country() -> None:
    from notifier.stages.route import Router

    world = replace(ACCOUNT, id=70, name="world", kind="twilio", countries=frozenset({"US", "GB"}))
    korea = replace(ACCOUNT, id=71, name="korea", kind="twilio", countries=frozenset({"KR"}))
    router = Router()
    router.use([world, korea])

    def picked(number: str) -> str:
        message = replace(claimed(), channel=Channel.SMS, address=Address(Channel.SMS, number))
        found = router.pick(message)
        return found.waiting if isinstance(found, Stop) else found.name

    assert picked("+821012345678") == "korea"
    assert picked("+12025550123") == picked("+447400123456") == "world"
    assert picked("+14165550123") == "provider_paused", "a Canadian number has the same country code as an American one"
    assert picked("+999123") == "provider_paused"
    router.use([world, korea, replace(ACCOUNT, id=72, name="anywhere", kind="twilio")])
    assert picked("+14165550123") == picked("+999123") == "anywhere"
