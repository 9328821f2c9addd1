"""The port through which the engine remembers: what it asks of a store, and the values that pass through.

The ORM adapter is `apps.notifications.ledger`. All times that decide are the store's own clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

from notifier.lifecycle import State
from notifier.message import Address, Channel, Lane, Mode
from notifier.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Stop:
    """A gate said no, or not now: which one, the value it saw, and what becomes of the delivery.

    `retry_in_s` set: it waits (word in `waiting`) and no try is counted; else it ends in `state`.
    """

    gate: str
    state: State
    reason: str = ""
    detail: str = ""
    seen: Any = None
    retry_in_s: float | None = None
    waiting: str = ""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery that this process may send until its lease ends, with all that sending needs.

    `claim_no` is the fence: a result counts only while it is still the row's. `lease_ends` is a monotonic
    time of this machine (CLOCK_BOOTTIME), taken before the claim was sent: never later than the row's lease.
    """

    delivery_id: UUID
    claim_no: int
    notification_id: UUID
    client_id: int
    mode: Mode
    channel: Channel
    lane: Lane
    queue_lane: str
    category_id: int
    campaign_id: UUID | None
    template_version_id: int | None
    state: State
    tries: int
    crashes: int
    expires_at: float  # Unix seconds
    lease_ends: float
    claimed_at: float  # the same clock
    may_duplicate: bool  # the category's policy for an uncertain outcome
    address: Address | None
    address_id: UUID | None
    device_id: UUID | None
    device_provider: str
    locale: str
    last_account_id: int | None
    collapse_key: str
    data: Mapping[str, Any] = field(repr=False)
    options: Mapping[str, Any] = field(repr=False)
    inline: Mapping[str, Any] | None = field(repr=False, default=None)
    shares_data: bool = True  # `data` is the notification's own, the same object for all its recipients
    stop: Stop | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a delivery after an outcome or a stop.

    `retry_in_s` None: it ends in `state`. Else it waits that long, in `state` (queued or retrying).
    """

    state: State
    reason: str = ""
    detail: str = ""
    retry_in_s: float | None = None
    waiting: str = ""
    is_counted: bool = False
    queue_lane: str = ""
    retire: bool = False  # the address is dead
    suppress: str = ""  # a suppression of this reason is to be written


@dataclass(frozen=True, slots=True)
class Result:
    """One claimed delivery, done with for now. `outcome` is None when nothing was handed to a provider."""

    claimed: Claimed
    verdict: Verdict
    outcome: Outcome | None = None
    account_id: int | None = None
    started_at: float = 0.0  # Unix seconds, for people only
    ended_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Account:
    """A provider account as the engine sees it. `revision` changes when its settings do."""

    id: int
    name: str
    kind: str
    settings: Mapping[str, Any] = field(repr=False)
    weight: int = 100
    platforms: frozenset[str] = frozenset()
    countries: frozenset[str] = frozenset()
    is_sandbox: bool = False
    is_active: bool = True
    hook_url: str = ""
    revision: str = ""


class Ledger(Protocol):
    def claim(self, ids: Sequence[UUID], *, lease_s: float, alone: bool = False) -> list[Claimed]:
        """Take those of `ids` that are due and free. One that another worker took is absent, not an error.

        `alone`: the only way to take a row whose process died, so that a poison row takes nobody with it.
        """
        ...

    def take(
        self, ids: Sequence[UUID], channel: Channel, lanes: Sequence[str], most: int, *, lease_s: float
    ) -> tuple[list[Claimed], bool]:
        """Take those of `ids` that are due and free, then what the lanes hold, in their order, rung or not, until there
        are `most`; round robin over clients. And whether that was all: True when the lanes hold no more.
        """
        ...

    def recheck(self, claimed: Sequence[Claimed]) -> list[Claimed]:
        """The same rows with the gates as they stand now, for what has waited in memory."""
        ...

    def record(self, results: Sequence[Result]) -> None:
        """Write the results, each behind its fence. Writing one twice is the same as once."""
        ...

    def accounts(self) -> Sequence[Account]:
        """All provider accounts, at most 1.5 s old."""
        ...

    def template(self, version_id: int) -> Any:
        """The compiled version (`notifier.stages.render.Compiled`). Never changes, so it is kept."""
        ...
