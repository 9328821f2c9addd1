"""The WSGI application: `granian --interface wsgi config.wsgi:application`."""

from __future__ import annotations

import os
import sys

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

# A thread that reads a batch of a thousand keeps the interpreter from the others for as long as this, each time they
# come back from the database: with Python's own five milliseconds a login code's request waited a tenth of a second.
sys.setswitchinterval(0.0005)

application = get_wsgi_application()
