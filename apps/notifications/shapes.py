"""What the bodies of this room's endpoints look like."""

from __future__ import annotations

from typing import Any

from apps.people.devices import RAW_DEVICE
from apps.rest.formats import Email, HttpsUrl, Locale, Phone, Time
from apps.rest.validation import Array, Boolean, Choice, Either, Field, FreeObject, Integer, Shape, Text
from notifier.message import Channel, Lane
from notifier.stages.render import EMAIL_HEADERS

MOST_RECIPIENTS = 100
MOST_ITEMS = 1000
MOST_BATCH_RECIPIENTS = 10_000
DATA_BYTES = 256 * 1024
OWN_DATA_BYTES = 16 * 1024
EVENT_ID = Text(min=1, max=200)

# A header is one line: RFC 5322 2.2.
_ONE_LINE = r"[^\x00-\x1f\x7f]*"


def _line(max: int, **options: Any) -> Text:
    return Text(max=max, pattern=_ONE_LINE, says="must be one line without control characters", **options)


def _channels() -> Array:
    return Array(Choice(Channel), min=1, max=len(Channel), unique=True)


RECIPIENT = Shape(
    {
        "user_id": Text(min=1, max=128),
        "email": Email(),
        "phone": Phone(),
        "device": RAW_DEVICE,
        "locale": Locale(),
        "data": FreeObject(max_bytes=OWN_DATA_BYTES),
        "channels": _channels(),
    },
    name="Recipient",
    one_of=[("user_id", "email", "phone", "device")],
)

CONTENT = Shape(
    {
        "push": Shape({"title": Text(max=200, default=""), "body": Text(max=2000, default="")}, name="PushContent"),
        "sms": Shape({"text": Text(min=1, max=1600, required=True)}, name="SmsContent"),
        "email": Shape(
            {
                "subject": _line(255, required=True),
                "html": Text(max_bytes=512 * 1024),
                "text": Text(max_bytes=512 * 1024),
            },
            name="EmailContent",
        ),
    },
    name="Content",
)

PUSH = Shape(
    {
        "badge": Integer(min=0, max=99_999),
        "sound": Text(max=64),
        "image": HttpsUrl(),
        "deep_link": Text(max=2048),
        "priority": Choice(["high", "normal"]),
        "ttl_s": Integer(min=0, max=2_419_200),
        "thread_id": Text(max=64),
        "interruption_level": Choice(["passive", "active", "time_sensitive", "critical"]),
        "silent": Boolean(),
        "data": FreeObject(values=Text(), max_bytes=4096),
    },
    name="PushOptions",
)
EMAIL = Shape(
    {
        "from": _line(320),
        "reply_to": _line(320),
        "headers": Shape({name: _line(998) for name in sorted(EMAIL_HEADERS)}, name="EmailHeaders"),
    },
    name="EmailOptions",
)
SMS = Shape({"sender": _line(20)}, name="SmsOptions")

TEMPLATE_KEY = Text(pattern=r"[a-z0-9][a-z0-9_.-]{0,99}", says="a template key has a-z, 0-9, _ . - and at most 100")

_FIELDS: dict[str, Field] = {
    "to": Array(RECIPIENT, min=1, max=MOST_RECIPIENTS, required=True),
    "template": Either(
        {
            str: TEMPLATE_KEY,
            dict: Shape(
                {"key": Text(pattern=TEMPLATE_KEY.pattern, required=True), "version": Integer(min=1, max=2**31 - 1)},
                name="TemplateReference",
            ),
        }
    ),
    "content": CONTENT,
    "data": FreeObject(max_bytes=DATA_BYTES, default=dict),
    "category": Text(min=1, max=100),
    "channels": _channels(),
    "lane": Choice(Lane),
    "send_at": Time(),
    "expires_at": Time(),
    "push": PUSH,
    "email": EMAIL,
    "sms": SMS,
    "reference": Text(max=200),
    "metadata": FreeObject(max_keys=20, max_key_length=40, values=Text(max=500), default=dict),
}

NOTIFICATION = Shape({"event_id": EVENT_ID, **_FIELDS}, name="Notification", one_of=[("template", "content")])
ITEM = Shape(
    {"event_id": Text(min=1, max=200, required=True), **_FIELDS}, name="BatchItem", one_of=[("template", "content")]
)
BATCH = Shape({"items": Array(ITEM, min=1, max=MOST_ITEMS, required=True)}, name="Batch")
