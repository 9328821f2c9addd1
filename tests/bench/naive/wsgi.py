from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.bench.naive.settings")
application = get_wsgi_application()

# As a project's own __init__ does: without it, `delay` in a web process would know no broker.
from tests.bench.naive.celery import app as celery_app  # noqa: E402

__all__ = ["application", "celery_app"]
