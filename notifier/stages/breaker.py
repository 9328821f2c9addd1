"""Whether a provider account is worth a call: opens on failures or silence, probes, closes on an answer.

Each process counts for itself; `notifier.stages.sickroom` tells the others what it found.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from notifier.outcome import Kind, Outcome, Scope

FAILURES_TO_OPEN = 10  # in a row; or so many calls, and then no answer to any for SILENT_S
SILENT_S = 5.0  # half of a call's time: a hung provider would else be handed all that comes in the whole of it
OPEN_S = 5.0  # first; doubles
MOST_OPEN_S = 10.0  # with a probe that hangs and what waits (below): all goes on within a minute of its return
PROBE_EVERY_S = 0.5  # another process probes: when this one asks again whether it may
PROBE_S = 15.0  # above the longest call: a probe without an answer by then was never made
ANSWERED_IN_S = 2.0  # by an account that is well again, nearly always
SICK_S = 30.0  # an account whose credentials were refused is left alone for so long
WINDOW_S = 30.0  # an account that answers some calls is left alone too, when at least half of those in here failed...
LEAST_CALLS = 20  # ... and there were so many


class Sickness(NamedTuple):
    """An open breaker, as processes tell each other. In seconds from now; all clocks differ."""

    until_s: float  # no call before; from then on one probe at a time
    next_open_s: float  # how long the next opening lasts
    since_s: float  # how long ago it fell sick


class Breaker:
    """Whether an account is worth a call, by what its last calls came to and what other processes found.

    `may_probe` asks whether this process is the one that makes the next probe.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, may_probe: Callable[[], bool] = lambda: True
    ) -> None:
        self._clock = clock
        self._may_probe = may_probe
        self._failures = 0
        self._window = _Window(clock)
        self._unanswered = 0  # calls since anything came back, and when there were too many of them
        self._silent_since = 0.0
        self._open_s = OPEN_S
        self._until = 0.0
        self._opened_at = 0.0
        self._probing_since: float | None = None
        self._ask_after = 0.0
        self._changes = 0  # of what others ought to know; and how many of them they know
        self._told = 0

    def allows(self) -> bool:
        """Whether a call may be made. While open: one probe, and another when that one never came back."""
        if self._until == 0.0:
            return True
        now = self._clock()
        if now < self._until or (self._probing_since is not None and now < self._probing_since + PROBE_S):
            return False
        if now < self._ask_after:
            return False
        if not self._may_probe():
            self._ask_after = now + PROBE_EVERY_S
            return False
        self._probing_since = now
        return True

    def asked(self) -> None:
        """A call is about to be made."""
        self._unanswered += 1
        if self._unanswered == FAILURES_TO_OPEN:
            self._silent_since = self._clock()

    def listen(self) -> None:
        """Open when many calls were made and nothing comes back."""
        if self._unanswered < FAILURES_TO_OPEN or self.is_open:
            return
        if self._clock() - self._silent_since >= SILENT_S:
            self._open_for_longer()

    @property
    def is_open(self) -> bool:
        return self._until != 0.0

    @property
    def away_s(self) -> float:
        """How long ago the account fell sick; 0 for one that is well, or may turn out to be at any moment."""
        now = self._clock()
        if not self.is_open or (self._probing_since is not None and now < self._probing_since + ANSWERED_IN_S):
            return 0.0
        return now - self._opened_at

    def saw(self, outcome: Outcome) -> None:
        self._unanswered = 0
        if outcome.kind is Kind.MISCONFIGURED and outcome.scope is Scope.ACCOUNT:
            self._open_for(SICK_S)
        elif outcome.kind in (Kind.UNAVAILABLE, Kind.UNCERTAIN):
            self._failures += 1
            is_half = self._window.add(failed=True)
            if self._probing_since is not None or (
                (self._failures >= FAILURES_TO_OPEN or is_half) and not self.is_open
            ):
                self._open_for_longer()
        elif outcome.kind is Kind.THROTTLED and outcome.scope is Scope.ACCOUNT:
            self._open_for(outcome.retry_after_s or 1.0)
        else:
            self._failures = 0
            if self.is_open:
                self._close()
                self._changes += 1
            self._window.add(failed=False)

    # --- what processes tell each other ---------------------------------------------------------------------------

    def news(self) -> int:
        """The number of the last change that others do not know of; 0: they know all."""
        return self._changes if self._changes != self._told else 0

    def told(self, change: int) -> None:
        """Others know of everything up to `change`."""
        self._told = change

    def sickness(self) -> Sickness | None:
        """What others ought to know; None: it is well."""
        if not self.is_open:
            return None
        now = self._clock()
        return Sickness(max(0.0, self._until - now), self._open_s, now - self._opened_at)

    def heard(self, sickness: Sickness | None) -> None:
        """What all processes know; older than what this one has just found out itself."""
        if self.news():
            return
        if sickness is None:
            if self.is_open:
                self._close()
            return
        now = self._clock()
        if not self.is_open or now + sickness.until_s > self._until + 1.0:  # a probe failed elsewhere
            self._probing_since = None
            self._until = now + sickness.until_s
        self._opened_at = now - sickness.since_s
        self._open_s = sickness.next_open_s

    def _close(self) -> None:
        self._failures, self._open_s, self._until, self._probing_since = 0, OPEN_S, 0.0, None
        self._unanswered = 0
        self._window.clear()

    def _open_for_longer(self) -> None:
        self._open_for(self._open_s)
        self._open_s = min(self._open_s * 2, MOST_OPEN_S)

    def _open_for(self, seconds: float) -> None:
        now = self._clock()
        if not self.is_open:
            self._opened_at = now
        self._until = now + seconds
        self._probing_since = None
        self._changes += 1


class _Window:
    """Calls and failures of the last half minute or so."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.clear()

    def clear(self) -> None:
        self._began, self._calls, self._failed = self._clock(), 0, 0

    def add(self, *, failed: bool) -> bool:
        """Whether at least half of enough calls failed."""
        if self._clock() - self._began > WINDOW_S:
            self.clear()
        self._calls += 1
        self._failed += failed
        return self._calls >= LEAST_CALLS and self._failed * 2 >= self._calls
