"""What every provider keeps to, whatever its wire: inherit, say how to reach it, and the cases run.

`ProviderContract` is for all, `HttpContract` for those that are called over HTTP, `CallbackContract`
for those that report back: over real sockets, against a server that misbehaves (`sink.py`). `SandboxContract` is
for those that the sandbox plays.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, ClassVar, TypeVar
from uuid import UUID, uuid4

import pytest
import uvloop

from notifier.message import Address, Channel, Content, EmailContent, Lane, Message, Mode, SmsContent
from notifier.outcome import Callback, Kind, Outcome, Receipt, Scope
from notifier.providers.base import ConfigurationError, Provider
from notifier.providers.carrier import Carrier
from tests.providers.conftest import Authority, Sandbox
from tests.providers.sink import Answer, Fault, Request

T = TypeVar("T")

TIMEOUT_S = 0.5  # of a call that is meant to run into it
SLACK_S = 2.0  # what a busy machine may add
DELIVERY_ID = UUID("01a204f4-77a0-7b02-a3c1-9e8d7c6b5a41")
UNICODE = "Grüße aus 서울 — 🚀 \u202eאבג"

BAD_DAYS = (Fault.HANG, Fault.RESET_AFTER, Fault.CLOSE_AFTER, Fault.GARBAGE, Fault.HUGE, Fault.DRIP)
"""Faults after which the message may have been taken and nobody knows."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """On uvloop, as a worker does, for at most 30 s; fails on what the loop complains of."""
    complaints: list[dict[str, Any]] = []

    async def watched() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        async with asyncio.timeout(30):
            return await work

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(watched())
    assert complaints == []
    return found


@dataclass
class World:
    """A provider, and the far end it talks to.

    `set_fault` changes how the far end behaves from the next message on. `taken` are the texts (title, body, subject
    ...) of each message that it read whole, as it understands them. `connections` counts what it accepted.
    """

    provider: Provider
    set_fault: Callable[[Fault], None]
    taken: Callable[[], list[str]]
    set_latency_s: Callable[[float], None] = lambda _: None


class ProviderContract(ABC):
    """Cases for any provider."""

    reset_before: ClassVar[Kind] = Kind.UNCERTAIN
    """What a reset before the message was read comes to: UNAVAILABLE where the wire shows that it was not read."""

    secrets: ClassVar[Sequence[str]]
    """Values in `settings()` that must never be seen."""

    @abstractmethod
    def world(self) -> AbstractAsyncContextManager[World]:
        """A far end in good order and a provider made for it, closed at the end."""

    @abstractmethod
    def nowhere(self) -> AbstractAsyncContextManager[Provider]:
        """A provider whose far end refuses connections."""

    @abstractmethod
    def strangers(self) -> AbstractAsyncContextManager[World]:
        """A far end that refuses our credentials."""

    @abstractmethod
    def address(self, n: int) -> Address:
        """The n-th recipient."""

    @abstractmethod
    def content(self, text: str) -> Content:
        """A message with `text` in each of its parts."""

    @abstractmethod
    def oversized(self) -> Content | None:
        """A message above the vendor's limit; None where the vendor has none that we can know."""

    @abstractmethod
    def settings(self) -> Any:
        """Settings that pass `check`, with `secrets` in them."""

    @abstractmethod
    def broken_settings(self) -> dict[str, Any]:
        """Settings that `check` refuses, by the field it must name."""

    def message(self, n: int = 0, *, text: str = "Your order has shipped", timeout_s: float = 10.0) -> Message:
        return Message(
            delivery_id=UUID(int=DELIVERY_ID.int + n),
            claim_no=n + 1,
            channel=self.address(n).channel,
            lane=Lane.NORMAL,
            mode=Mode.LIVE,
            address=self.address(n),
            content=self.content(text),
            expires_at=time.time() + 3600,
            collapse_id=f"key-{n}",
            timeout_s=timeout_s,
        )

    def test_each_message_has_its_outcome_in_the_batchs_order(self) -> None:
        async def case() -> tuple[list[Outcome], list[str]]:
            async with self.world() as world:
                batch = [self.message(n, text=f"text-{n}") for n in range(5)]
                batch[2] = replace(batch[2], content=_foreign(batch[2].channel))
                return await world.provider.send(batch), world.taken()

        outcomes, taken = run(case())
        assert [outcome.kind for outcome in outcomes] == [Kind.ACCEPTED] * 2 + [Kind.REJECTED] + [Kind.ACCEPTED] * 2
        assert all(outcome.provider_ref for outcome in outcomes if outcome.kind is Kind.ACCEPTED)
        assert sorted(text[:6] for text in taken) == ["text-0", "text-1", "text-3", "text-4"]

    def test_an_empty_batch_is_no_error(self) -> None:
        async def case() -> list[Outcome]:
            async with self.world() as world:
                return await world.provider.send([])

        assert run(case()) == []

    def test_a_batch_goes_out_at_once_and_not_one_after_the_other(self) -> None:
        async def case() -> float:
            async with self.world() as world:
                await world.provider.send([self.message()])  # connections and tokens are not what is timed
                world.set_latency_s(0.4)
                start = time.monotonic()
                outcomes = await world.provider.send([self.message(n, text=f"text-{n}") for n in range(8)])
                assert {outcome.kind for outcome in outcomes} == {Kind.ACCEPTED}
                return time.monotonic() - start

        assert run(case()) < 8 * 0.4 / 2

    @pytest.mark.parametrize("fault", BAD_DAYS)
    def test_a_message_that_may_have_been_taken_is_uncertain_and_sent_once(self, fault: Fault) -> None:
        async def case() -> tuple[Outcome, float, list[str]]:
            async with self.world() as world:
                world.set_fault(fault)
                start = time.monotonic()
                (outcome,) = await world.provider.send([self.message(timeout_s=TIMEOUT_S)])
                return outcome, time.monotonic() - start, world.taken()

        outcome, took_s, taken = run(case())
        assert outcome.kind is Kind.UNCERTAIN
        assert outcome.reason in ("answer_lost", "answer_garbled")
        assert took_s < TIMEOUT_S + SLACK_S
        assert len(taken) == 1

    def test_garbage_is_told_apart_from_silence(self) -> None:
        async def case(fault: Fault) -> str:
            async with self.world() as world:
                world.set_fault(fault)
                return (await world.provider.send([self.message(timeout_s=TIMEOUT_S)]))[0].reason

        assert run(case(Fault.GARBAGE)) == "answer_garbled"
        assert run(case(Fault.HANG)) == "answer_lost"

    def test_a_reset_before_the_message_was_read_is_what_the_wire_can_know(self) -> None:
        async def case() -> tuple[Outcome, list[str]]:
            async with self.world() as world:
                world.set_fault(Fault.RESET_BEFORE)
                (outcome,) = await world.provider.send([self.message(timeout_s=TIMEOUT_S)])
                return outcome, world.taken()

        outcome, taken = run(case())
        assert outcome.kind is self.reset_before
        assert taken == []

    def test_a_refused_connection_is_known_not_sent(self) -> None:
        async def case() -> tuple[list[Outcome], float]:
            async with self.nowhere() as provider:
                start = time.monotonic()
                outcomes = await provider.send([self.message(n, timeout_s=5) for n in range(3)])
                return outcomes, time.monotonic() - start

        outcomes, took_s = run(case())
        assert [outcome.kind for outcome in outcomes] == [Kind.UNAVAILABLE] * 3
        assert took_s < SLACK_S

    def test_refused_credentials_are_our_fault_and_no_addresss(self) -> None:
        async def case() -> list[Outcome]:
            async with self.strangers() as world:
                return await world.provider.send([self.message(n) for n in range(3)])

        for outcome in run(case()):
            assert (outcome.kind, outcome.scope) == (Kind.MISCONFIGURED, Scope.ACCOUNT)
            assert not outcome.opted_out and outcome.gone_since is None

    @pytest.mark.parametrize("fault", [*BAD_DAYS, Fault.RESET_BEFORE])
    def test_a_bad_day_ends_with_the_fault(self, fault: Fault) -> None:
        async def case() -> list[Kind]:
            async with self.world() as world:
                await world.provider.send([self.message()])
                world.set_fault(fault)
                await world.provider.send([self.message(n, timeout_s=TIMEOUT_S) for n in range(3)])
                world.set_fault(Fault.NONE)
                return [outcome.kind for outcome in await world.provider.send([self.message(n) for n in range(3)])]

        assert run(case()) == [Kind.ACCEPTED] * 3

    def test_a_cancelled_send_leaves_nothing_behind(self) -> None:
        async def case() -> list[Kind]:
            async with self.world() as world:
                world.set_fault(Fault.HANG)
                sending = asyncio.create_task(world.provider.send([self.message(n) for n in range(3)]))
                await asyncio.sleep(0.2)
                sending.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await sending
                world.set_fault(Fault.NONE)
                return [outcome.kind for outcome in await world.provider.send([self.message(n) for n in range(3)])]

        assert run(case()) == [Kind.ACCEPTED] * 3

    def test_any_script_arrives_as_it_was_written(self) -> None:
        async def case() -> list[str]:
            async with self.world() as world:
                await world.provider.send([self.message(text=UNICODE)])
                return world.taken()

        (taken,) = run(case())
        assert UNICODE in taken

    def test_what_is_too_large_is_refused_before_it_is_sent(self) -> None:
        content = self.oversized()
        if content is None:
            return

        async def case() -> tuple[Outcome, list[str]]:
            async with self.world() as world:
                (outcome,) = await world.provider.send([replace(self.message(), content=content)])
                return outcome, world.taken()

        outcome, taken = run(case())
        assert (outcome.kind, outcome.reason) == (Kind.REJECTED, "payload_too_large")
        assert taken == []

    def test_neither_secret_nor_address_is_seen(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)

        async def case() -> list[object]:
            seen: list[object] = []
            for make in (self.world, self.strangers):
                async with make() as world:
                    for fault in (Fault.NONE, Fault.GARBAGE, Fault.RESET_AFTER):
                        world.set_fault(fault)
                        seen += await world.provider.send([self.message(timeout_s=TIMEOUT_S)])
                    seen += [world.provider, world.provider.settings]
            async with self.nowhere() as provider:
                seen += await provider.send([self.message(timeout_s=TIMEOUT_S)])
            return seen

        seen = "\n".join(map(repr, run(case()))) + caplog.text + repr(self.settings())
        for hidden in (*self.secrets, self.address(0).value):
            assert len(hidden) > 5
            assert hidden not in seen

    def test_settings_that_work_pass_and_others_are_named(self) -> None:
        provider = type(self).provider_class()
        provider.check(self.settings())
        for name, broken in self.broken_settings().items():
            with pytest.raises(ConfigurationError) as raised:
                provider.check(broken)
            assert str(raised.value).startswith(f"{name}:"), name
            assert not any(secret in str(raised.value) for secret in self.secrets)

    def test_the_secrets_are_marked_as_such(self) -> None:
        settings = self.settings()
        for each in fields(settings):
            value = str(getattr(settings, each.name))
            if any(secret in value for secret in self.secrets):
                assert each.metadata["secret"], each.name
            assert {"secret", "help"} <= set(each.metadata), each.name

    @classmethod
    @abstractmethod
    def provider_class(cls) -> type[Provider]:
        """The class under test."""


class HttpContract(ABC):
    """Cases for providers that are called over HTTP/1.1 by the process's carrier."""

    accepting: ClassVar[Answer]
    throttling: ClassVar[Answer]
    waits_s: ClassVar[float | None] = None
    """How long a THROTTLED without a usable `Retry-After` waits."""

    @abstractmethod
    def answered(
        self, answer: Answer, *, tls: ssl.SSLContext | None = None, ca_file: str = ""
    ) -> tuple[Outcome, list[Request]]:
        """What one message comes to at a far end that answers so, and the requests that it read."""

    def throttled(self, headers: dict[str, str]) -> Outcome:
        return self.answered(replace(self.throttling, headers=headers))[0]

    def test_a_server_with_a_certificate_we_trust_is_sent_to(self, authority: Authority) -> None:
        outcome, requests = self.answered(self.accepting, tls=authority.server, ca_file=authority.ca_file)
        assert outcome.kind is Kind.ACCEPTED
        assert len(requests) == 1

    def test_a_server_with_any_other_certificate_gets_nothing(self, authority: Authority) -> None:
        outcome, requests = self.answered(self.accepting, tls=authority.server)
        assert outcome.kind is Kind.UNAVAILABLE
        assert requests == []

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_a_redirect_is_not_followed(self, status: int) -> None:
        outcome, requests = self.answered(Answer(status, b"", {"Location": "/elsewhere"}))
        assert (outcome.kind, outcome.scope) == (Kind.MISCONFIGURED, Scope.ACCOUNT)
        assert len(requests) == 1

    def test_seconds_to_wait_are_obeyed(self) -> None:
        outcome = self.throttled({"Retry-After": "17"})
        assert (outcome.kind, outcome.scope, outcome.retry_after_s) == (Kind.THROTTLED, Scope.ACCOUNT, 17.0)

    def test_a_date_to_wait_for_is_obeyed(self) -> None:
        outcome = self.throttled(
            {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)}
        )
        assert outcome.kind is Kind.THROTTLED
        assert outcome.retry_after_s is not None
        assert 60 < outcome.retry_after_s <= 90

    @pytest.mark.parametrize("told, meant", [("0", 1.0), ("86400", 3600.0), ("Sun, 06 Nov 1994 08:49:37 GMT", 1.0)])
    def test_what_is_asked_is_kept_between_a_second_and_an_hour(self, told: str, meant: float) -> None:
        assert self.throttled({"Retry-After": told}).retry_after_s == meant

    @pytest.mark.parametrize("told", ["", "-5", "soon", "nan", "1e9", "Mon, 99 Foo 2026 25:61:61 GMT", "９"])
    def test_nonsense_is_as_good_as_nothing(self, told: str) -> None:
        outcome = self.throttled({"Retry-After": told} if told else {})
        assert (outcome.kind, outcome.retry_after_s) == (Kind.THROTTLED, self.waits_s)


class SandboxContract(ABC):
    """Cases for providers that the sandbox plays: its wire was written from the vendor's documents alone."""

    sandbox_faults: ClassVar[dict[str, Kind]]
    """Modes of the sandbox's faults -> what a message comes to."""

    @abstractmethod
    def sandbox_provider(self, sandbox: Sandbox, carrier: Carrier) -> Provider:
        """A provider with an account at the sandbox."""

    @abstractmethod
    def sandbox_recipients(self) -> list[tuple[Address, Kind, str]]:
        """Each magic recipient with the outcome's kind and reason."""

    def test_each_sandbox_recipient_has_its_outcome(self, sandbox: Sandbox) -> None:
        recipients = self.sandbox_recipients()

        async def case() -> list[Outcome]:
            async with Carrier() as carrier:
                provider = self.sandbox_provider(sandbox, carrier)
                batch = [replace(self.sandbox_message(), address=address) for address, _, _ in recipients]
                outcomes = await provider.send(batch)
                await provider.aclose()
                return outcomes

        found = [(outcome.kind, outcome.reason) for outcome in run(case())]
        assert found == [(kind, reason) for _, kind, reason in recipients]

    def test_the_sandboxs_faults_come_to_what_they_mean(self, sandbox: Sandbox) -> None:
        good = next(address for address, kind, _ in self.sandbox_recipients() if kind is Kind.ACCEPTED)

        async def case() -> dict[str, Kind]:
            found = {}
            async with Carrier() as carrier:
                provider = self.sandbox_provider(sandbox, carrier)
                for mode in self.sandbox_faults:
                    message = replace(self.sandbox_message(), address=good, timeout_s=TIMEOUT_S)
                    await asyncio.to_thread(sandbox.fault, provider.kind, mode, retry_after=7)
                    try:
                        found[mode] = (await provider.send([message]))[0].kind
                    finally:
                        await asyncio.to_thread(sandbox.calm)
                (after,) = await provider.send([replace(self.sandbox_message(), address=good)])
                assert after.kind is Kind.ACCEPTED
                await provider.aclose()
            return found

        assert run(case()) == self.sandbox_faults

    def test_what_was_accepted_is_in_the_sandboxs_ledger_under_our_id(self, sandbox: Sandbox) -> None:
        good = next(address for address, kind, _ in self.sandbox_recipients() if kind is Kind.ACCEPTED)
        batch = [replace(self.sandbox_message(), address=good) for _ in range(20)]

        async def case() -> str:
            async with Carrier() as carrier:
                provider = self.sandbox_provider(sandbox, carrier)
                outcomes = await provider.send(batch)
                assert {outcome.kind for outcome in outcomes} == {Kind.ACCEPTED}
                await provider.aclose()
                return provider.kind

        ledger = [entry["delivery_id"] for entry in sandbox.inbox(run(case()))]
        assert sorted(ledger.count(str(message.delivery_id)) for message in batch) == [1] * 20

    @abstractmethod
    def message(self) -> Message:
        """A message, whose recipient is replaced."""

    def sandbox_message(self) -> Message:
        return replace(self.message(), delivery_id=uuid4(), claim_no=2)

    def sandbox_receipts(
        self, sandbox: Sandbox, address: Address, enough: Callable[[list[Receipt]], bool]
    ) -> list[Receipt]:
        """What the sandbox reports of a message to `address`; each callback is believed, each finds the message."""
        message = replace(self.sandbox_message(), address=address)

        async def case() -> Provider:
            async with Carrier() as carrier:
                provider = self.sandbox_provider(sandbox, carrier)
                (outcome,) = await provider.send([message])
                assert outcome.kind is Kind.ACCEPTED
                await provider.aclose()
                return provider

        provider = run(case())

        def receipts(callbacks: list[Callback]) -> list[Receipt]:
            assert all(provider.verify(callback) for callback in callbacks)
            found = (receipt for callback in callbacks for receipt in provider.receipts(callback))
            return [receipt for receipt in found if receipt.delivery_id == message.delivery_id]

        callbacks = sandbox.caught(provider.kind, message.delivery_id, lambda found: enough(receipts(found)))
        assert {receipt.claim_no for receipt in receipts(callbacks)} == {message.claim_no}
        return receipts(callbacks)


class CallbackContract(ABC):
    """Cases for providers that report back."""

    @abstractmethod
    def receiver(self) -> Provider:
        """A provider that knows the key the callbacks are signed with. Makes no connection."""

    @abstractmethod
    def callback(self) -> Callback:
        """A genuine callback about `DELIVERY_ID`, signed now."""

    @abstractmethod
    def forgeries(self) -> dict[str, Callback]:
        """Callbacks that this provider in particular must refuse, by what is wrong with them."""

    def test_a_genuine_callback_is_believed_and_finds_its_delivery(self) -> None:
        callback, receiver = self.callback(), self.receiver()
        assert receiver.verify(callback) is True
        receipts = receiver.receipts(callback)
        assert receipts
        assert {receipt.delivery_id for receipt in receipts} == {DELIVERY_ID}
        assert all(receipt.claim_no and receipt.event_id for receipt in receipts)

    def test_the_same_callback_again_is_the_same_event(self) -> None:
        receiver, callback = self.receiver(), self.callback()
        first, second = (receiver.receipts(callback) for _ in range(2))
        assert [receipt.event_id for receipt in first] == [receipt.event_id for receipt in second]

    def test_a_forged_callback_is_refused(self) -> None:
        receiver = self.receiver()
        for what, forged in self.forgeries().items():
            assert receiver.verify(forged) is False, what

    def test_any_nonsense_is_refused_and_never_raises(self) -> None:
        receiver, genuine = self.receiver(), self.callback()
        seed = random.randrange(1 << 32)
        chance = random.Random(seed)
        for _ in range(300):
            noise = chance.randbytes(chance.randrange(200))
            headers = {name: noise.decode("latin-1") for name in genuine.headers}
            for nonsense in (
                replace(genuine, body=noise, headers=headers),
                replace(genuine, body=noise),
                Callback("POST", genuine.url, {}, noise),
            ):
                assert receiver.verify(nonsense) is False, f"seed {seed}"
                assert isinstance(receiver.receipts(nonsense), list), f"seed {seed}"

    def test_a_deeply_nested_or_endless_body_does_no_harm(self) -> None:
        receiver, genuine = self.receiver(), self.callback()
        for unit, times in (
            (b"[", 100_000),
            (b'{"a":', 100_000),
            (b"&", 100_000),
            (b"a=", 50_000),
            (b"A: b\n", 20_000),
        ):
            body = unit * times
            assert receiver.verify(replace(genuine, body=body)) is False
            assert isinstance(receiver.receipts(replace(genuine, body=body)), list)


def _foreign(channel: Channel) -> Content:
    """Content that belongs to another channel."""
    return EmailContent("subject", text="text") if channel is not Channel.EMAIL else SmsContent("text")


def only(receipts: Sequence[Receipt]) -> Receipt:
    (receipt,) = receipts
    return receipt
