"""django-post_office as its README sets it up, with its own batch and thread settings at what measured best."""

from __future__ import annotations

import os

import environ

SECRET_KEY = "bench"
INSTALLED_APPS = ["django.contrib.contenttypes", "post_office"]
DATABASES = {"default": environ.Env().db_url("PEER_DATABASE_URL", engine="django.db.backends.postgresql")}
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
EMAIL_BACKEND = "post_office.EmailBackend"
EMAIL_HOST = "127.0.0.1"
EMAIL_PORT = int(os.environ["PEER_SMTP_PORT"])
POST_OFFICE = {"BATCH_SIZE": 1000, "THREADS_PER_PROCESS": 5, "DEFAULT_PRIORITY": "medium"}
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
LOGGING = {
    "version": 1,
    "handlers": {"nowhere": {"class": "logging.NullHandler"}},
    "loggers": {"post_office": {"handlers": ["nowhere"], "level": "WARNING"}},
}
