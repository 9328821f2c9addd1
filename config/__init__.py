"""The configuration: settings from the environment, the Celery app, the URL map."""

from config.celery import app as celery_app

__all__ = ["celery_app"]
