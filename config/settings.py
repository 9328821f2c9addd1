"""Settings, read once from the environment. A missing or wrong one stops the process, naming the key and the mend.

Each variable may also be given as `<NAME>_FILE`, the path of a file that holds the value (container secrets).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import environ
from cryptography.fernet import Fernet
from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent
env = environ.FileAwareEnv()


def required(key: str, mend: str) -> str:
    value: str = env.str(key, default="").strip()
    if not value:
        raise ImproperlyConfigured(f"{key} is not set. {mend} (or set {key}_FILE to a file that holds it).")
    return value


# --- Who we are -----------------------------------------------------------------------------------------------

DEMO: bool = env.bool("DEMO", default=False)
"""Started by `make up`: embedded servers, seeded data, sandbox providers. Never in production."""

DEBUG: bool = env.bool("DEBUG", default=False)
"""Django's pages for developers in place of plain errors. Never in production."""
PUBLIC_URL: str = env.str("PUBLIC_URL", default="http://127.0.0.1:8000").rstrip("/")
"""The address that callers and providers use: links, hooks and the types of errors start with it."""
if urlsplit(PUBLIC_URL).scheme not in ("http", "https") or not urlsplit(PUBLIC_URL).hostname:
    raise ImproperlyConfigured(
        f"PUBLIC_URL is {PUBLIC_URL!r}. Give the address callers use: https://notify.example.com"
    )

SECRET_KEY = required("SECRET_KEY", "Make one: openssl rand -base64 48")
FIELD_ENCRYPTION_KEYS: list[str] = [
    key.strip()
    for key in required("FIELD_ENCRYPTION_KEYS", "Make one: openssl rand -base64 32 | tr +/ -_").split(",")
    if key.strip()
]
"""Fernet keys, newest first: the first encrypts, all decrypt."""
for _position, _key in enumerate(FIELD_ENCRYPTION_KEYS, start=1):
    try:
        Fernet(_key)
    except ValueError as error:
        raise ImproperlyConfigured(
            f"FIELD_ENCRYPTION_KEYS: key {_position} is not 32 bytes in URL-safe base64. "
            "Make one: openssl rand -base64 32 | tr +/ -_"
        ) from error

ADDRESS_HASH_KEY: str = env.str("ADDRESS_HASH_KEY", default="") or (
    SECRET_KEY if DEMO else required("ADDRESS_HASH_KEY", "Make one and keep it for ever: openssl rand -base64 32")
)
"""Keys the hashes of addresses and device tokens. Under another key no suppression would be found again.

The demo takes SECRET_KEY for it."""

ALLOWED_HOSTS: list[str] = [
    *env.list("ALLOWED_HOSTS", default=[]),
    str(urlsplit(PUBLIC_URL).hostname),
    "127.0.0.1",
    "localhost",
    "[::1]",
]
"""Further host names that we answer to, with commas between; PUBLIC_URL's and the loopback's are always in."""

PROCESS_NAME: str = env.str("PROCESS_NAME", default="notifier")
"""What log lines, metrics and PostgreSQL's list of sessions call this process."""

# --- PostgreSQL -----------------------------------------------------------------------------------------------

required("DATABASE_URL", "Example: postgres://user:password@host:5432/notifier, or run `make up` for an embedded one")
DATABASES = {"default": env.db_url("DATABASE_URL", engine="django.db.backends.postgresql")}
DATABASES["default"].update(
    CONN_MAX_AGE=env.int("DATABASE_CONN_MAX_AGE", default=600),  # Seconds that a web thread keeps its session.
    # A dead connection is found by its first statement; a ping before each request would cost a round trip.
    CONN_HEALTH_CHECKS=False,
    DISABLE_SERVER_SIDE_CURSORS=True,  # PgBouncer in transaction mode: no session state
)
DATABASES["default"]["OPTIONS"] = {
    "connect_timeout": 5,
    # A server that is gone without a word is noticed within seconds, not after the system's quarter of an hour.
    "tcp_user_timeout": 10_000,  # ms, for what was sent
    "keepalives_idle": 10,  # s, for what is waited for
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "application_name": PROCESS_NAME,
} | DATABASES["default"].get("OPTIONS", {})

PARTITION_DAYS: int = env.int("PARTITION_DAYS", default=7)
"""Days in one partition. Fixed at the first migrate."""
if PARTITION_DAYS not in (1, 7):
    raise ImproperlyConfigured(f"PARTITION_DAYS is {PARTITION_DAYS}. It is 1 (above 2 M deliveries a day) or 7.")

KEPT_DAYS: int = env.int("KEPT_DAYS", default=90)
"""Days that notifications, deliveries and what became of them are kept."""
CONTENT_KEPT_DAYS: int = env.int("CONTENT_KEPT_DAYS", default=30)
"""Days that what was said, and to which raw address, is kept."""
EVENT_KEYS_KEPT_DAYS: int = env.int("EVENT_KEYS_KEPT_DAYS", default=30)
"""Days that an event_id is known as a duplicate; at most KEPT_DAYS."""
if not EVENT_KEYS_KEPT_DAYS <= KEPT_DAYS:
    raise ImproperlyConfigured(f"EVENT_KEYS_KEPT_DAYS is {EVENT_KEYS_KEPT_DAYS}. KEPT_DAYS ({KEPT_DAYS}) is its limit.")

# --- Broker, limits, cache ------------------------------------------------------------------------------------

BROKER_URL = required("BROKER_URL", "Example: redis://host:6379/0 with maxmemory-policy noeviction")


def _redis_url(broker_url: str) -> str:
    """The broker's server as redis-py spells it, "" when it is no Redis: kombu has its own word for a socket."""
    parts = urlsplit(broker_url)
    if parts.scheme == "redis+socket":
        database = parse_qs(parts.query).get("virtual_host", ["0"])[0]
        return f"unix://{parts.path}?db={database}"
    return broker_url if parts.scheme in ("redis", "rediss") else ""


BROKER_REDIS_URL: str = _redis_url(BROKER_URL)

LIMITS_URL: str = env.str("LIMITS_URL", default="") or BROKER_REDIS_URL
"""Redis of rate buckets, breakers and nonces, for redis-py. Never evicts. Default: the broker's server."""
if not LIMITS_URL:
    raise ImproperlyConfigured("LIMITS_URL is not set and BROKER_URL is no Redis. Example: redis://host:6379/2")

CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": required("CACHE_URL", "Example: redis://host:6380/0, a server of its own that may evict"),
        "KEY_PREFIX": "notifier",
        "OPTIONS": {"socket_timeout": 0.25, "socket_connect_timeout": 0.25},
    }
}

CELERY_BROKER_URL = BROKER_URL
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_TASK_RETRY_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_MAX_TASKS_PER_CHILD = 10_000
CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT = 30
CELERY_WORKER_ENABLE_REMOTE_CONTROL = env.bool("WORKER_REMOTE_CONTROL", default=False)  # Only on a private broker.
CELERY_BEAT_SYNC_EVERY = 1
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_TIMEZONE = "UTC"
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_BROKER_CHANNEL_ERROR_RETRY = True  # A broker that is full answers with an error: without this a worker ends.
# A publish blocks for a second at most, whatever the broker does; config.celery gives workers longer waits.
CELERY_TASK_PUBLISH_RETRY_POLICY = {"max_retries": 0}
CELERY_BROKER_CONNECTION_TIMEOUT = 1
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": 120,  # above every hard limit of a task, below an operator's patience
    "socket_timeout": 1,
    "socket_connect_timeout": 1,
    "socket_keepalive": True,
    "health_check_interval": 10,
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,
    "queue_order_strategy": "config.celery:LaneOrder",
    "max_retries": 0,
    "interval_start": 0,
    "connect_retries_timeout": 1,
    "global_keyprefix": env.str("BROKER_KEY_PREFIX", default=""),  # Before all keys, where installations share a Redis.
}

# --- Django ---------------------------------------------------------------------------------------------------

INSTALLED_APPS = [
    "unfold",
    "django.contrib.admin.apps.SimpleAdminConfig",  # config/urls.py discovers the screens: workers load none
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "django_celery_beat",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "apps.clients.apps.ClientsConfig",
    "apps.people.apps.PeopleConfig",
    "apps.templates.apps.TemplatesConfig",
    "apps.providers.apps.ProvidersConfig",
    "apps.notifications.apps.NotificationsConfig",
    "apps.console.apps.ConsoleConfig",
]
MIDDLEWARE = [
    "apps.rest.middleware.RequestIdMiddleware",
    "apps.console.middleware.WatchMiddleware",
    "apps.rest.middleware.ProblemMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "apps.console.pages.Sessions",
    "django.middleware.common.CommonMiddleware",
    "apps.console.pages.Csrf",
    "apps.console.pages.Users",
    "apps.console.pages.Messages",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "apps.console.csp.AdminPolicyMiddleware",
]
ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]

LANGUAGE_CODE = "en"
USE_I18N = True
USE_TZ = True
TIME_ZONE = "UTC"

STATIC_URL = "/static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
# `collectstatic` gives them hashed names; without it (demo, tests) the files are served from where they lie.
_COLLECTED = (STATIC_ROOT / "staticfiles.json").exists()
WHITENOISE_USE_FINDERS = not _COLLECTED
if not _COLLECTED:
    warnings.filterwarnings("ignore", message="No directory at", category=UserWarning)  # WhiteNoise, of STATIC_ROOT
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "apps.console.assets.Assets"},
}

_HTTPS = PUBLIC_URL.startswith("https://")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _HTTPS
SESSION_COOKIE_AGE = 8 * 3600  # a working day
SESSION_COOKIE_SAMESITE = "Lax"
SECURE_HSTS_SECONDS = 31_536_000 if _HTTPS else 0
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL]
if env.bool("BEHIND_TLS_PROXY", default=False):  # A proxy of ours ends TLS and sets X-Forwarded-Proto.
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
TRUSTED_PROXIES: int = env.int("TRUSTED_PROXIES", default=0)
"""How many proxies of ours append to X-Forwarded-For. 0: the header is not believed."""
DATA_UPLOAD_MAX_MEMORY_SIZE = 10 * 2**20  # batch and provider callbacks; the parser holds the rest to 1 MiB

# --- The admin site -------------------------------------------------------------------------------------------

FORMAT_MODULE_PATH = ["apps.console.formats"]
LOGIN_REDIRECT_URL = "admin:index"  # the theme's login form leaves out where Django would go by itself
UNFOLD = {
    "SITE_TITLE": "Notifier",
    "SITE_HEADER": "Notifier",
    "SITE_SYMBOL": "notifications_active",
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": "apps.console.site.icon"}],
    "SITE_URL": None,
    "SHOW_VIEW_ON_SITE": False,
    "SHOW_BACK_BUTTON": True,
    "ENVIRONMENT": "apps.console.site.environment",
    "DASHBOARD_CALLBACK": "apps.console.dashboard.dashboard",
    "STYLES": ["apps.console.site.stylesheet"],
    "SIDEBAR": {"show_search": True, "navigation": "apps.console.site.navigation"},
    "COLORS": {
        "primary": {
            "50": "#eef6ff",
            "100": "#d9eaff",
            "200": "#bcdaff",
            "300": "#8ec3ff",
            "400": "#59a2ff",
            "500": "#3380fb",
            "600": "#1d61f0",
            "700": "#154cdd",
            "800": "#183fb3",
            "900": "#19398d",
            "950": "#142456",
        }
    },
}

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["apps.clients.auth.AppKeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["apps.rest.permissions.HasScope"],
    "DEFAULT_PARSER_CLASSES": ["apps.rest.parsing.StrictJSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["apps.rest.rendering.JSONRenderer"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "apps.rest.rendering.Negotiation",
    "EXCEPTION_HANDLER": "apps.rest.problems.exception_handler",
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "UNAUTHENTICATED_USER": None,
    "UNAUTHENTICATED_TOKEN": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Notifier",
    "DESCRIPTION": (
        "Push, SMS and email behind one call. Requests are strict: an unknown field or query parameter is an error. "
        "Answers are lenient: they may gain fields and words at any time, so ignore what you do not know. "
        "Every 4xx and 5xx is `application/problem+json`; `type` is the address of a page about it."
    ),
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SERVERS": [{"url": PUBLIC_URL}],
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "displayRequestDuration": True, "tryItOutEnabled": False},
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
}

# --- Being watched --------------------------------------------------------------------------------------------

LOG_LEVEL: str = env.str("LOG_LEVEL", default="INFO").upper()
"""DEBUG, INFO, WARNING or ERROR: the least that is logged."""
if LOG_LEVEL not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
    raise ImproperlyConfigured(f"LOG_LEVEL is {LOG_LEVEL!r}. It is DEBUG, INFO, WARNING or ERROR.")

ACCESS_LOG: bool = env.bool("ACCESS_LOG", default=not DEMO)
"""A log line for each request and each task that was rung. The demo's terminal is spared them."""

LOGGING_CONFIG = "apps.console.logs.configure"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {
        # A caller's mistake and a "not ready yet" are answers, not events; a crash is one.
        "crashes": {
            "()": "django.utils.log.CallbackFilter",
            "callback": lambda record: getattr(record, "status_code", 500) == 500,
        },
    },
    "formatters": {"json": {"()": "apps.console.logs.json_lines", "process": PROCESS_NAME}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": "json"}},
    "loggers": {
        "django": {"handlers": [], "level": "NOTSET"},  # Django's own handlers would print a second time, or send mail
        "django.request": {"filters": ["crashes"]},
        "django.server": {"handlers": [], "level": "NOTSET", "propagate": True},
        "celery": {"level": "WARNING"},  # its own line for each task: ours say more
        "_granian": {"handlers": [], "propagate": True},
    },
    "root": {"handlers": ["stderr"], "level": LOG_LEVEL},
}

METRICS_TOKEN: str = env.str("METRICS_TOKEN", default="")
"""Bearer token of /metrics. Empty: the page answers only where PUBLIC_URL is a private address."""


def _metrics_directory() -> str:
    """One per user and database, so that two installations on a machine do not add up."""
    database = hashlib.blake2b(env.str("DATABASE_URL").encode(), digest_size=6).hexdigest()
    path = f"{tempfile.gettempdir()}/notifier-metrics-{os.geteuid()}-{database}"
    os.makedirs(path, mode=0o700, exist_ok=True)
    if os.lstat(path).st_uid != os.geteuid():  # anybody may make files where temporary ones go
        raise ImproperlyConfigured(f"{path} is another user's. Set METRICS_DIR to a directory of our own.")
    return path


METRICS_DIR: str = env.str("METRICS_DIR", default="") or _metrics_directory()
"""Where the processes of this machine keep their counters for /metrics: the same for all of them, and theirs alone."""
try:
    os.makedirs(METRICS_DIR, mode=0o700, exist_ok=True)
except OSError as error:
    raise ImproperlyConfigured(
        f"METRICS_DIR cannot be made ({error}). Name a directory that we may write to."
    ) from error
if not os.access(METRICS_DIR, os.W_OK | os.X_OK):
    raise ImproperlyConfigured(f"METRICS_DIR ({METRICS_DIR}) is not writable. Name a directory that we may write to.")
os.environ["PROMETHEUS_MULTIPROC_DIR"] = METRICS_DIR  # read when prometheus_client is first imported
