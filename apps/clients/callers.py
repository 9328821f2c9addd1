"""Who calls: a key with its client and secrets, remembered for a moment by each process."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from apps.clients import services
from apps.clients.models import AppKey
from apps.clients.policy import ClientPolicy
from notifier.message import Mode

FRESH_S = 1.5  # a revoked secret, key or client must be shut out within 2 s
MOST_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Caller:
    """`request.auth`: the client that calls, in which mode, with which key."""

    client_id: int
    mode: Mode
    app_key: str
    client: ClientPolicy

    def spend(self, *, requests: int = 0, recipients: int = 0) -> services.Allowance:
        """Raises Problem rate-limited or quota-exceeded."""
        return services.check_rate(self.client, self.mode, requests=requests, recipients=recipients)


@dataclass(frozen=True, slots=True)
class Credential:
    """A key that may be used: its caller, and the secrets that open it, at most two."""

    caller: Caller
    secrets: tuple[str, ...] = field(repr=False)


class Credentials:
    """Credentials by key, re-read when older than 1.5 s. Unknown keys are remembered too, so that both cost alike."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[float, Credential | None]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, app_key: str) -> Credential | None:
        """None: unknown, revoked, or without a live secret. Raises OperationalError when the database is away."""
        now = time.monotonic()
        known = self._known.get(app_key)
        if known and now - known[0] < FRESH_S:
            return known[1]
        found = _read(app_key)
        with self._lock:
            self._known[app_key] = now, found  # the time before the query: the answer may be that old
            self._known.move_to_end(app_key)
            while len(self._known) > MOST_REMEMBERED:
                self._known.popitem(last=False)
        return found

    def forget(self) -> None:
        with self._lock:
            self._known.clear()


credentials = Credentials()


def _read(app_key: str) -> Credential | None:
    key = AppKey.objects.select_related("client").filter(pk=app_key, is_active=True).first()
    if key is None:
        return None
    secrets = tuple(row.secret for row in services.live_secrets(app_key)[: services.LIVE_SECRETS])
    if not secrets:
        return None
    policy = ClientPolicy.of(key.client)
    return Credential(Caller(policy.id, Mode(key.mode), key.app_key, policy), secrets)
