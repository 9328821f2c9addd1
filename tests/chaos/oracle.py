"""What became of it: the callers' list of 202s against the sandbox's own ledger of what it took."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import requests

from notifier.lifecycle import ENDS, State
from tests.acceptance.stack import Stack

EXPLAINED = frozenset({State.SUPPRESSED, State.CANCELLED, State.EXPIRED, State.FAILED, State.DEAD, State.UNKNOWN})
"""Ends without an entry in the ledger that say why. Those that a scenario does not ask for fail it apart."""


@dataclass(frozen=True, slots=True)
class Verdict:
    accepted: int
    deliveries: int
    lost: list[str]
    sent: Counter[str]  # delivery -> how often the sandbox took it
    states: Counter[str]
    made_twice: int

    @property
    def duplicates(self) -> int:
        """Entries of one delivery minus one, summed."""
        return sum(times - 1 for times in self.sent.values())

    @property
    def most_times(self) -> int:
        return max(self.sent.values(), default=0)


def judge(stack: Stack, accepted: Mapping[str, str]) -> Verdict:
    """`accepted`: event id, or reference of what has none -> notification, which is lost without its one delivery."""
    ours = set(accepted.values())
    rows = stack.query(
        "SELECT notification_id::text, id::text, state FROM notifications_delivery "
        "WHERE notification_id = ANY (%s::uuid[])",
        sorted(ours),
    )
    taken = Counter(line for line in ledger(stack) if line)
    laid_out = {notification for notification, _, _ in rows}
    lost = sorted(ours - laid_out) + [id for _, id, state in rows if id not in taken and state not in EXPLAINED]
    names = sorted(accepted)
    [(made_twice,)] = stack.query(
        "SELECT count(*) FROM (SELECT coalesce(nullif(event_id, ''), reference) FROM notifications_notification "
        "WHERE event_id = ANY (%s::text[]) OR reference = ANY (%s::text[]) GROUP BY 1 HAVING count(*) > 1) twice",
        names,
        names,
    )
    return Verdict(
        accepted=len(ours),
        deliveries=len(rows),
        lost=lost,
        sent=Counter({id: taken[id] for _, id, _ in rows if id in taken}),
        states=Counter(state for _, _, state in rows),
        made_twice=made_twice,
    )


def ledger(stack: Stack) -> Iterable[str | None]:
    """The delivery id of everything that the sandbox ever took, in order."""
    answer = requests.get(f"{stack.sandbox_url}/_ledger", timeout=60)
    answer.raise_for_status()
    return (json.loads(line)[0] for line in answer.text.splitlines())


def late_results(stack: Stack, accepted: Mapping[str, str]) -> int:
    """What came back behind the fence, its lease over and given to another: kept as a try, followed by nothing."""
    [(count,)] = stack.query(
        "SELECT count(*) FROM notifications_attempt a JOIN notifications_delivery d ON d.id = a.delivery_id "
        "WHERE a.is_late AND d.notification_id = ANY (%s::uuid[]) AND a.claim_no < d.claim_no",
        sorted(accepted.values()),
    )
    return int(count)


def open_rows(stack: Stack) -> int:
    """What is still to be sent, or still to be laid out."""
    [(count,)] = stack.query(
        "SELECT (SELECT count(*) FROM notifications_pending) + (SELECT count(*) FROM notifications_expansion)"
    )
    return int(count)


def wait_ended(stack: Stack, within_s: float) -> float:
    """Seconds until nothing was open any more. Raises AssertionError with what is left."""
    began = time.monotonic()
    while open_rows(stack):
        if time.monotonic() - began > within_s:
            left = stack.query(
                "SELECT channel, lane, lease_until IS NOT NULL, crashes, tries, waiting, count(*), "
                "min(wake_at - now())::text, max(wake_at - now())::text FROM notifications_pending GROUP BY 1,2,3,4,5,6"
            )
            raise AssertionError(f"still open after {within_s:.0f} s: {left}\n{stack.last_words()}")
        time.sleep(0.2)
    return time.monotonic() - began


def assert_books_balance(stack: Stack) -> None:
    """The counts kept beside the rows say the same as the rows: accepted = ended + in flight."""
    now: Counter[str] = Counter()
    for old, new, n in stack.query("SELECT from_state, to_state, sum(n) FROM notifications_tally GROUP BY 1, 2"):
        now[new] += n
        if old:
            now[old] -= n
    rows = Counter(dict(stack.query("SELECT state, count(*) FROM notifications_delivery GROUP BY 1")))
    assert +now == rows, f"tallies say {dict(+now)}, rows say {dict(rows)}"
    assert set(rows) <= {state.value for state in ENDS}
