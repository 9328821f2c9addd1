"""The configuration: settings from the environment, the Celery app, the URL map."""

from config.broker import mend
from config.celery import app as celery_app

mend()

__all__ = ["celery_app"]
