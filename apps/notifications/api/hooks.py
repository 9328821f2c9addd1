"""What providers call: verified on the raw body, stored, answered fast; settled later."""

from __future__ import annotations

import structlog
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods

from apps.notifications.metrics import HOOKS_REFUSED
from apps.notifications.services import receipts
from apps.providers import services as providers
from apps.rest.body import BULK_BODY_LIMIT, raw_body
from apps.rest.problems import Problem
from notifier.outcome import Callback

log = structlog.get_logger(__name__)


@csrf_exempt
@require_http_methods(["POST", "GET", "HEAD"])
def hook(request: HttpRequest, kind: str, account: str) -> HttpResponse:
    """204: kept (or known already). 403: not the provider's signature. 404: no such account."""
    found = providers.account_for_hook(kind, account)
    if found is None:
        return HttpResponse(status=404)
    if request.method == "HEAD":  # some vendors look whether the address is there
        return HttpResponse(status=200)
    try:
        body = raw_body(request, BULK_BODY_LIMIT)
    except Problem as problem:
        return HttpResponse(status=problem.status)
    callback = Callback(
        method=str(request.method),
        # A proxy may have changed host and scheme: the vendor signed the address it was given.
        url=f"{settings.PUBLIC_URL}{request.get_full_path()}",
        headers={name.lower(): value for name, value in request.headers.items()},
        body=body,
    )
    reported = providers.read_callback(found, callback)
    if reported is None:
        HOOKS_REFUSED.labels(found.name).inc()
        log.warning("hook_refused", account=found.name)
        return HttpResponse(status=403)
    receipts.keep(found.pk, reported)  # the relay sees the inbox within a tick and rings its queue
    return HttpResponse(status=204)
