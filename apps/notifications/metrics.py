"""What this room counts for Prometheus, in the process where it happens; /metrics adds the processes up."""

from __future__ import annotations

from collections import Counter as Tallied
from collections.abc import Mapping, Sequence, Set
from uuid import UUID

from django.conf import settings
from prometheus_client import Counter, Gauge, Histogram

from notifier.ledger import Result
from notifier.message import Channel
from notifier.outcome import Kind

ACCEPTED = Counter("notifier_notifications_accepted", "Notifications accepted.", ["mode", "lane"])
DUPLICATES = Counter(
    "notifier_notifications_duplicate", "Requests and items of batches recognised as duplicates.", ["by"]
)
RINGS = Counter("notifier_rings", "Deliveries rung for by this process.", ["result"])
RECORDED = Counter(
    "notifier_results_recorded",
    "Results recorded, by what the provider account answered; not_sent: nothing was handed to one.",
    ["channel", "account", "outcome"],
)
LATE = Counter(
    "notifier_results_late", "Results that no longer counted: the lease was over, or a receipt was faster.", ["channel"]
)
CALL_SECONDS = Histogram(
    "notifier_provider_seconds",
    "From handing a message to a provider account to its answer.",
    ["account"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
IN_FLIGHT = Gauge(
    "notifier_in_flight",
    "Calls open and results not yet committed: what a death of this worker process can send twice.",
    ["process"],
    multiprocess_mode="liveall",
)
LEASES_EXPIRED = Counter("notifier_leases_expired", "Leases that ended without a result.", ["channel"])
RECEIPTS = Counter("notifier_receipts", "Receipts, by what became of them.", ["outcome"])
HOOKS_REFUSED = Counter("notifier_hooks_refused", "Callbacks whose signature was not the provider's.", ["account"])
ORPHANS = Counter(
    "notifier_orphans_found", "Deliveries found open with nothing to send them, or the other way round.", ["kind"]
)

NOT_SENT = "not_sent"

# A series that appears with its first event shows Prometheus no increase, and an alert on one misses that one.
for _channel in Channel:
    LATE.labels(_channel.value)
    LEASES_EXPIRED.labels(_channel.value)
for _kind in ("open_without_pending", "pending_without_open"):
    ORPHANS.labels(_kind)


def count_results(results: Sequence[Result], counted: Set[UUID], accounts: Mapping[int, str]) -> None:
    """Count a batch that was committed. `counted`: the deliveries whose result did; `accounts`: names by id."""
    recorded: Tallied[tuple[str, str, str]] = Tallied()
    for result in results:
        channel = result.claimed.channel.value
        if result.claimed.delivery_id not in counted:
            LATE.labels(channel).inc()
            continue
        account = accounts.get(result.account_id, "") if result.account_id is not None else ""
        recorded[channel, account, result.outcome.kind.value if result.outcome else NOT_SENT] += 1
        if result.outcome is not None and result.started_at:
            CALL_SECONDS.labels(account).observe(max(0.0, result.ended_at - result.started_at))
    for channel, account in {labels[:2] for labels in recorded if labels[2] != NOT_SENT}:
        for kind in Kind:
            recorded[channel, account, kind.value] += 0  # a series of its own from the start: see above
    for labels, number in recorded.items():
        RECORDED.labels(*labels).inc(number)


def say_in_flight(used: int) -> None:
    """For `notifier.loop.Slots`: called with each change."""
    IN_FLIGHT.labels(settings.PROCESS_NAME).set(used)
