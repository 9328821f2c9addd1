"""The contract that every provider keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from notifier.message import Message
from notifier.outcome import Callback, Outcome, Receipt


class ConfigurationError(Exception):
    """A provider account cannot work as configured. The text names the field and the mend, never a secret's value."""


def setting(default: Any = "", *, secret: bool = False, help: str = "") -> Any:
    """A field of a provider's `Settings`: its default, whether it is a secret (then no repr), and one line of help."""
    return field(default=default, repr=not secret, metadata={"secret": secret, "help": help})


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a provider instance is given beside its settings; made in the worker process, after the fork.

    `carrier`: the process's pooled HTTP client (`notifier.providers.carrier.Carrier`).
    `exchange_token`: shares a short-lived token between processes; see `notifier.providers.apns`.
    `hook_url`: the public URL that this account's callbacks come to.
    """

    carrier: Any
    hook_url: str = ""
    exchange_token: Callable[..., Any] | None = None
    account_name: str = ""


class Provider(ABC):
    """One kind of provider, for one account of ours with it.

    Made on the worker's event loop, used from that loop only, closed with `aclose`.
    """

    kind: ClassVar[str]
    serves: ClassVar[frozenset[str]]  # {"sms"}, {"email"}, {"push:ios", "push:macos"} ...
    batch_size: ClassVar[int] = 1  # messages that one send() may take
    Settings: ClassVar[type]  # a frozen dataclass, each field made by setting()

    def __init__(self, settings: Any, surroundings: Surroundings) -> None:
        self.settings = settings
        self.surroundings = surroundings

    @abstractmethod
    async def send(self, batch: Sequence[Message]) -> list[Outcome]:
        """Hand the messages over: one outcome each, same order.

        Remote faults are outcomes, never raised. Ends within the messages' `timeout_s`; repeats nothing
        that may have been taken.
        """

    async def prepare(self) -> None:
        """Make ready what the first send would else wait for: a token, a connection. What it raises is only noted."""
        return None

    def verify(self, callback: Callback) -> bool:
        """Whether a callback is really the provider's: its signature over the raw body, in constant time.

        Never raises for anything in the callback; a malformed one is simply not theirs.
        """
        return False

    def receipts(self, callback: Callback) -> list[Receipt]:
        """The receipts in a verified callback. An event we do not know becomes `ReceiptKind.UNKNOWN`."""
        return []

    @classmethod
    def check(cls, settings: Any) -> None:
        """Raise ConfigurationError for settings that cannot work, without any network call."""
        return None

    async def aclose(self) -> None:
        """Close what this instance opened. The carrier is not ours to close."""
        return None
