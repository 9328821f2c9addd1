"""/metrics for Prometheus: what every process of this machine counted, and the state of the service as it is now."""

from __future__ import annotations

import fcntl
import hmac
import ipaddress
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from apps.console.gauges import DatabaseGauges

log = structlog.get_logger(__name__)

FORWARDED = ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_X_REAL_IP", "HTTP_VIA")
_SUMMED = re.compile(r"(counter|histogram|summary)_(\d+)\.db")
_LIVE = re.compile(r"gauge_live[a-z]*_(\d+)\.db")


@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """200 with the text format. 401 without the token, 403 with a wrong one."""
    refusal = _refusal(request)
    if refusal is not None:
        return refusal
    registry = CollectorRegistry()
    registry.register(DatabaseGauges())
    body = generate_latest(registry) + counted()
    return HttpResponse(body, content_type=CONTENT_TYPE_PLAIN_0_0_4, headers={"Cache-Control": "no-store"})


# --- who may ask ----------------------------------------------------------------------------------------------


def _refusal(request: HttpRequest) -> HttpResponse | None:
    scheme, _, given = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() == "bearer":
        token = settings.METRICS_TOKEN.encode()
        if token and hmac.compare_digest(given.strip().encode(errors="replace"), token):
            return None
        return _refused(403, "That is not METRICS_TOKEN.")
    if is_private(request):
        return None
    if not settings.METRICS_TOKEN:
        return _refused(403, "METRICS_TOKEN is not set.")
    return _refused(401, "Send Authorization: Bearer with METRICS_TOKEN.")


def _refused(status: int, text: str) -> HttpResponse:
    headers = {"Cache-Control": "no-store"} | ({"WWW-Authenticate": 'Bearer realm="metrics"'} if status == 401 else {})
    return HttpResponse(f"{text}\n", status=status, content_type="text/plain", headers=headers)


def is_private(request: HttpRequest) -> bool:
    """Whether the service is on a private address and is asked from one.

    A neighbour's address alone proves nothing: behind a proxy on the same machine, everybody has it. So the address
    that callers are given (PUBLIC_URL) must be private too, and nobody may have passed the request on.
    """
    return (
        _is_private_host(urlsplit(settings.PUBLIC_URL).hostname or "")
        and _is_private_host(request.META.get("REMOTE_ADDR", ""))
        and not any(name in request.META for name in FORWARDED)
    )


def _is_private_host(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:  # a name may be anybody's
        return False
    return address.is_loopback or address.is_private


# --- the processes' files -------------------------------------------------------------------------------------


def counted() -> bytes:
    """What the processes of this machine counted, living and dead, added up."""
    directory = Path(settings.METRICS_DIR)
    registry = CollectorRegistry()
    with alone_in(directory):
        fold_the_dead(directory)
        MultiProcessCollector(registry, path=str(directory))  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def tidy() -> None:
    """Fold what dead processes left, also where nobody scrapes. Cheap; for each process that starts."""
    directory = Path(settings.METRICS_DIR)
    with alone_in(directory):
        fold_the_dead(directory)


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """One scrape at a time on this machine: what is being folded must not be read half."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # some systems empty their temporary directories
    with (directory / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield  # closing the file gives the lock back


def fold_the_dead(directory: Path) -> None:
    """Add what dead processes counted to one file, and drop theirs: totals never fall, files never pile up.

    Dropping alone would make a sum go down, which Prometheus takes for a restart from 0 and counts all again.
    """
    for path in sorted(directory.iterdir()):
        if (found := _SUMMED.fullmatch(path.name)) and not _lives(int(found[2])):
            try:
                _add_to(directory / f"{found[1]}_folded.db", path)
            except (struct.error, RuntimeError, ValueError):  # it died before its file had a beginning
                log.warning("counters_unreadable", file=path.name)
            path.unlink()
        elif (found := _LIVE.fullmatch(path.name)) and not _lives(int(found[1])):
            path.unlink()


def _add_to(folded: Path, dead: Path) -> None:
    files: Any = MmapedDict  # without annotations of its own
    total = files(str(folded))
    try:
        for key, value, _, _ in files.read_all_values_from_file(str(dead)):
            total.write_value(key, total.read_value(key)[0] + value, 0.0)
    finally:
        total.close()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
