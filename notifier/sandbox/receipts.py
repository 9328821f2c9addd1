"""Receipts on their way back: a bounded queue that posts them to the hooks and tries again when it must."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import aiohttp

_AT_ONCE = 16  # calls in the air; the hook answers in well under 100 ms
_WAITING_MOST = 100_000  # parcels; beyond it the newest are dropped and counted
_TRIES = 12
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 60.0  # doubled each time: the last try is about five minutes on
_TIMEOUT_S = 15.0
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(slots=True)
class Parcel:
    url: str  # as the vendor would call it, and as it is signed
    body: bytes
    headers: Mapping[str, str]
    tries: int = 0


class Courier:
    """Posts parcels to the hooks and to nowhere else.

    A URL on loopback or under `hooks_url` is called as it is. Any other one (the public name of the service) is
    called at `hooks_url` with the public name in `Host`, so that its signature still holds and no message can
    make this process call a third party.
    """

    def __init__(self, *, hooks_url: str, enabled: bool) -> None:
        self.hooks_url = hooks_url
        self._enabled = enabled
        self._ready: asyncio.Queue[Parcel] = asyncio.Queue()
        self._session: aiohttp.ClientSession | None = None
        self._workers: list[asyncio.Task[None]] = []
        self.waiting = self.sent = self.dropped = self.refused = 0

    def hook(self, kind: str, account: str) -> str:
        return f"{self.hooks_url}/hooks/{kind}/{account}"

    def start(self) -> None:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S), trust_env=False)
        self._workers = [asyncio.create_task(self._carry()) for _ in range(_AT_ONCE)]

    async def stop(self) -> None:
        for worker in self._workers:
            worker.cancel()
        if self._session is not None:
            await self._session.close()

    def post(self, url: str, body: bytes, headers: Mapping[str, str], *, delay_s: float = 0.0) -> None:
        """Never raises and never waits. Without receipts (`--bare`) it does nothing."""
        if not self._enabled:
            return
        if self.waiting >= _WAITING_MOST:
            self.dropped += 1
            return
        self.waiting += 1
        self._hand_over(Parcel(url, body, headers), delay_s)

    def _hand_over(self, parcel: Parcel, delay_s: float) -> None:
        if delay_s > 0:
            asyncio.get_running_loop().call_later(delay_s, self._ready.put_nowait, parcel)
        else:
            self._ready.put_nowait(parcel)

    async def _carry(self) -> None:
        while True:
            parcel = await self._ready.get()
            status = await self._call(parcel)
            parcel.tries += 1
            if (status is None or status >= 500 or status == 429) and parcel.tries < _TRIES:
                self._hand_over(parcel, min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (parcel.tries - 1)))
                continue
            self.waiting -= 1
            if status is not None and status < 300:
                self.sent += 1
            else:
                self.refused += 1

    async def _call(self, parcel: Parcel) -> int | None:
        """The answer's status; None when there was none."""
        url, host = self._where(parcel.url)
        headers = {**parcel.headers, "Host": host} if host else parcel.headers
        assert self._session is not None  # noqa: S101 - workers run between start() and stop() only
        try:
            async with self._session.post(url, data=parcel.body, headers=headers, allow_redirects=False) as answer:
                await answer.read()
                return answer.status
        except (aiohttp.ClientError, TimeoutError, ValueError, OSError):
            return None

    def _where(self, url: str) -> tuple[str, str]:
        """The URL to call, and the Host header when it differs from that URL's."""
        asked, ours = urlsplit(url), urlsplit(self.hooks_url)
        if asked.hostname in _LOOPBACK or (asked.scheme, asked.netloc) == (ours.scheme, ours.netloc):
            return url, ""
        path = ours.path.rstrip("/") + asked.path
        return urlunsplit((ours.scheme, ours.netloc, path, asked.query, "")), asked.netloc
