"""The engine's memory in PostgreSQL: the ORM adapter of `notifier.ledger.Ledger`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar
from uuid import UUID

import structlog
from django.db import Error as DatabaseError
from django.db import InterfaceError, OperationalError, connection, transaction

from apps.notifications import claims, records
from apps.notifications.metrics import count_results
from apps.notifications.services import holds
from apps.people import services as people
from apps.providers import services as providers
from apps.templates import services as templates
from notifier.ledger import Account, Claimed, Result
from notifier.message import Channel, Mode
from notifier.outcome import Outcome
from notifier.stages.render import Compiled

T = TypeVar("T")
log = structlog.get_logger(__name__)

ACCOUNTS_FRESH_S = 1.5
READ_ONLY = "25006"  # SQLSTATE: a standby, or an operator's switch


class PostgresLedger:
    def __init__(self) -> None:
        self._accounts: Sequence[Account] = ()
        self._accounts_read = float("-inf")
        self._lock = threading.Lock()

    def claim(self, ids: Sequence[UUID], *, lease_s: float, alone: bool = False) -> list[Claimed]:
        return _once_more(lambda: claims.claim(ids, lease_s=lease_s, alone=alone))

    def take(
        self, ids: Sequence[UUID], channel: Channel, lanes: Sequence[str], most: int, *, lease_s: float
    ) -> tuple[list[Claimed], bool]:
        return _once_more(lambda: claims.take(ids, channel, lanes, most, lease_s=lease_s))

    def recheck(self, claimed: Sequence[Claimed]) -> list[Claimed]:
        return claims.read_again(claimed)

    def record(self, results: Sequence[Result]) -> None:
        """Runs on the recorder's thread; a dead connection is dropped there, so that the next try opens another."""
        for start in range(0, len(results), records.BATCH):
            batch = results[start : start + records.BATCH]
            try:
                self._record(batch)
            except Exception as error:
                connection.close()
                if _is_away(error):  # also one that became a standby: the next connection may lead to its successor
                    raise
                self._record_each(batch, error)

    def _record_each(self, batch: Sequence[Result], error: Exception) -> None:
        """One result that cannot be written must not keep the others: each by itself, a bad one without its words."""
        log.error("batch_not_recorded", error=type(error).__name__, rows=len(batch))
        for result in batch:
            for attempt in (result, _bare(result)):
                try:
                    self._record([attempt])
                    break
                except Exception as error:
                    connection.close()
                    if _is_away(error):
                        raise
                    log.error(
                        "result_not_recorded",
                        delivery_id=str(result.claimed.delivery_id),
                        error=type(error).__name__,
                    )

    def _record(self, results: Sequence[Result]) -> None:
        touching = [r for r in results if _touches_people(r)]
        if touching:
            with transaction.atomic():
                counted = records.write(results)
                for result in touching:
                    if result.claimed.delivery_id in counted:
                        _touch(result)
        else:
            counted = records.write(results)
        count_results(results, counted, {account.id: account.name for account in self._accounts})

    def accounts(self) -> Sequence[Account]:
        with self._lock:
            if time.monotonic() - self._accounts_read > ACCOUNTS_FRESH_S:
                found = holds.without_held(providers.engine_accounts())
                if found != self._accounts:
                    self._accounts = found
                self._accounts_read = time.monotonic()
            return self._accounts

    def template(self, version_id: int) -> Compiled:
        return templates.version_by_id(version_id).compiled


def _is_away(error: Exception) -> bool:
    """Whether the database could not be asked, as against: it was, and refused these values."""
    if isinstance(error, (OperationalError, InterfaceError)):
        return True
    return isinstance(error, DatabaseError) and getattr(error.__cause__, "pgcode", None) == READ_ONLY


def _bare(result: Result) -> Result:
    """The result without a word from outside."""
    outcome = result.outcome
    return replace(
        result,
        verdict=replace(result.verdict, detail=""),
        outcome=outcome and Outcome(outcome.kind, outcome.scope, http_status=outcome.http_status),
    )


def _once_more(work: Callable[[], T]) -> T:
    """Locks are taken in id order, so a deadlock is rare; it costs one repeat."""
    try:
        return work()
    except OperationalError as error:
        if getattr(error.__cause__, "pgcode", None) != "40P01":
            raise
        return work()


def _touches_people(result: Result) -> bool:
    claimed = result.claimed
    if not (result.verdict.retire or result.verdict.suppress):
        return False
    # A test must leave no trace on real people; a sandbox recipient is there to be retired.
    return claimed.mode is Mode.LIVE or bool(claimed.address and claimed.address.is_sandbox)


def _touch(result: Result) -> None:
    claimed, verdict = result.claimed, result.verdict
    gone_since = result.outcome.gone_since if result.outcome else None
    if verdict.retire and claimed.device_id is not None:
        people.retire_device(claimed.device_id, verdict.reason, gone_since=gone_since)
    elif verdict.retire and claimed.address_id is not None:
        people.retire_address(claimed.address_id, verdict.reason)
    if verdict.suppress and claimed.address is not None:
        people.suppress(
            claimed.channel, claimed.address.value, verdict.suppress, source="provider", note=verdict.detail
        )
