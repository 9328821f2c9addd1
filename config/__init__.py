"""The configuration: settings from the environment, the Celery app, the URL map."""

import gc

# A process is made of what it imports, and none of that is garbage: looking for some, again and again while it grows,
# is a fourth of a start. `apps.console.apps` allows it again.
gc.disable()

from config.broker import mend  # noqa: E402
from config.celery import app as celery_app  # noqa: E402

mend()

__all__ = ["celery_app"]
