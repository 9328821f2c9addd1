"""What a worker of T15 loads beside the service: messages that end, hang, or hold up the process that touches them.

Never part of the product: `celery worker --include tests.chaos.poison`.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from notifier.stages.dispatch import Dispatcher
from notifier.stages.render import Renderer

# The texts that do it; a code has at most 12.
RENDERER, ADAPTER, HANGS, BURNS = "poison-one", "poison-two", "poison-six", "poison-ten"
BURNS_S = 2.0
BURNT = "two seconds were burnt"  # in the worker's log

log = logging.getLogger(__name__)
_render, _outcomes = Renderer.render, Dispatcher._outcomes


def render(self: Renderer, *args: Any, **options: Any) -> Any:
    said = repr((args, options))
    if RENDERER in said:
        os._exit(1)
    if HANGS in said:
        time.sleep(3600)  # until the task's hard limit ends the process
    if BURNS in said:
        until = time.monotonic() + BURNS_S
        while time.monotonic() < until:
            pass
        log.warning(BURNT)
    return _render(self, *args, **options)


async def outcomes(self: Dispatcher, account: Any, jobs: Any) -> Any:
    if any(ADAPTER in repr(job.message.content) for job in jobs):
        os._exit(1)
    return await _outcomes(self, account, jobs)


Renderer.render = render
Dispatcher._outcomes = outcomes
