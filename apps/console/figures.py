"""The dashboard's figures: from the tallies and from short walks of indexes, never from a count of live rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db.models import Count, F, Sum
from django.utils import timezone

from apps.console.health import WORKERS
from apps.notifications.invariants import COUNTED_TO, Depth, read_books
from apps.notifications.models import Delivery, Hold, Tally
from apps.providers.models import ProviderAccount
from notifier.ids import floor_id
from notifier.lifecycle import State
from notifier.message import Mode

SENT = frozenset({State.SENT, State.DELIVERED, State.OPENED, State.CLICKED})
FAILED = frozenset({State.FAILED, State.UNDELIVERED, State.DEAD, State.UNKNOWN})
KINDS: dict[str, frozenset[State]] = {
    "sent": SENT,
    "failed": FAILED,
    "suppressed": frozenset({State.SUPPRESSED}),
}
HOURS_CHARTED = 24
DELIVERIES_LOOKED_AT = 20_000  # for the reasons: a walk of the newest, some 30 ms
REASONS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Hour:
    """What happened within one hour, UTC."""

    start: datetime
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class AccountLine:
    """A provider account, and what became of its deliveries in the last two hours."""

    account: ProviderAccount
    sent: int
    failed: int

    @property
    def failed_percent(self) -> float | None:
        """None when nothing went through it."""
        total = self.sent + self.failed
        return 100 * self.failed / total if total else None


def midnight(now: datetime | None = None) -> datetime:
    return (now or timezone.now()).replace(hour=0, minute=0, second=0, microsecond=0)


def hours(mode: Mode) -> list[Hour]:
    """The last two days, oldest first: `accepted`, `sent`, `failed`, `suppressed` of each hour. One statement.

    Something is counted when it enters a kind, not when it moves within: delivered after sent is one.
    """
    this_hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    first = midnight(this_hour) - timedelta(days=1)
    count = (this_hour - first) // timedelta(hours=1) + 1
    found = {first + timedelta(hours=n): Hour(first + timedelta(hours=n)) for n in range(count)}
    rows = Tally.objects.filter(hour__gte=first, mode=mode.value).values_list("hour", "from_state", "to_state")
    for hour, old, new, n in rows.annotate(total=Sum("n")).order_by():
        if hour in found:
            found[hour].counts.update({kind: n for kind in _entered(old, new)})
    return list(found.values())


def _entered(old: str, new: str) -> Iterable[str]:
    if not old:
        yield "accepted"
    yield from (kind for kind, states in KINDS.items() if new in states and old not in states)


def total(found: Iterable[Hour], kind: str, since: datetime, until: datetime) -> int:
    return sum(hour.counts[kind] for hour in found if since <= hour.start < until)


def queues() -> list[tuple[str, Depth, bool]]:
    """By queue: how deep it is, and whether that is "at least". A fixed number of statements."""
    return [(name, depth, depth.rows >= COUNTED_TO) for name, depth in read_books().queues.items()]


def accounts() -> list[AccountLine]:
    """Every account, with what went through it. Two statements."""
    since = timezone.now().replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    counts: dict[int, Counter[str]] = {}
    rows = Tally.objects.filter(hour__gte=since, account_id__isnull=False)
    for account, old, new, n in rows.values_list("account_id", "from_state", "to_state").annotate(Sum("n")).order_by():
        counts.setdefault(account, Counter()).update({kind: n for kind in _entered(old, new)})
    nothing: Counter[str] = Counter()
    return [
        AccountLine(account, counts.get(account.pk, nothing)["sent"], counts.get(account.pk, nothing)["failed"])
        for account in ProviderAccount.objects.defer("secrets", "settings")
    ]


def reasons(mode: Mode) -> list[tuple[str, str, int]]:
    """(state, reason, how many) of today's failures, the most frequent first, among the newest deliveries."""
    newest = Delivery.objects.filter(pk__gte=floor_id(midnight())).order_by("-pk")
    looked_at = newest.values_list("pk", flat=True)[DELIVERIES_LOOKED_AT - 1 : DELIVERIES_LOOKED_AT].first()
    rows = Delivery.objects.filter(pk__gte=looked_at or floor_id(midnight()), mode=mode.value, state__in=FAILED)
    counted = rows.values_list("state", "reason").annotate(n=Count("pk")).order_by(F("n").desc(), "reason")
    return list(counted[:REASONS_SHOWN])


def holds() -> int:
    return Hold.objects.count()


def problems() -> list[str]:
    """What does not work, in the words of /readyz."""
    return [problem for check in WORKERS for problem in check()]
