"""What callers may say about people, field by field."""

from __future__ import annotations

from typing import Any

from apps.people.models import SuppressionReason
from apps.people.services.users import MAX_ATTRIBUTES_BYTES
from apps.rest.catalogue import FieldCode
from apps.rest.formats import Clock, Country, Email, Locale, Phone, Time, TimeZone, normal_email, normal_phone
from apps.rest.paths import Path
from apps.rest.validation import Boolean, Choice, Errors, Field, FreeObject, Lazy, Shape, Text
from notifier.message import Channel

MAX_BULK = 1000
ADDRESS_CHANNELS = (Channel.EMAIL, Channel.SMS)

USER_ID = Text(
    min=1,
    max=128,
    # No control characters, no slash, and none of the two names that paths take for themselves.
    pattern=r"(?!\.{1,2}\Z)[^/\x00-\x1f\x7f-\x9f]+",
    says="has no slash and no control character, and is not . or ..",
    required=True,
)

_USER_FIELDS: dict[str, Field] = {
    "email": Email(nullable=True),
    "phone": Phone(nullable=True),
    "locale": Locale(nullable=True),
    "time_zone": TimeZone(nullable=True),
    "country": Country(nullable=True),
    "attributes": FreeObject(max_bytes=MAX_ATTRIBUTES_BYTES, nullable=True),
}
USER = Shape(_USER_FIELDS, name="UserIn")
BULK_USER = Shape({"id": USER_ID, **_USER_FIELDS}, name="BulkUserIn")
BULK = Shape({"users": Lazy(BULK_USER, min=1, max=MAX_BULK, required=True)}, name="BulkUsersIn")


def _normal_address(parsed: dict[str, Any], path: Path, errors: Errors, name: str) -> None:
    if parsed["channel"] == Channel.EMAIL:
        normal, code, says = normal_email(parsed[name]), FieldCode.INVALID_EMAIL, "is no email address"
    else:
        normal, code, says = normal_phone(parsed[name]), FieldCode.INVALID_PHONE, "is no phone number in E.164"
    parsed[name] = normal or errors.add((path, name), code, says)


def _address_value(parsed: dict[str, Any], path: Path, errors: Errors) -> None:
    if "value" in parsed and "channel" in parsed:
        _normal_address(parsed, path, errors, "value")
    elif "value" in parsed:
        errors.add((path, "channel"), FieldCode.REQUIRED, "is required with value")


_FLAGS: dict[str, Field] = {"primary": Boolean(), "verified": Boolean()}
ADDRESS = Shape(
    {"channel": Choice(ADDRESS_CHANNELS, required=True), "value": Text(min=1, max=320, required=True), **_FLAGS},
    check=_address_value,
    name="AddressIn",
)
ADDRESS_CHANGE = Shape(
    {"channel": Choice(ADDRESS_CHANNELS), "value": Text(min=1, max=320), **_FLAGS},
    check=_address_value,
    name="AddressChangeIn",
)


def _quiet_hours(parsed: dict[str, Any], path: Path, errors: Errors) -> None:
    if parsed["from"] == parsed["to"]:
        errors.add((path, "to"), FieldCode.OUT_OF_RANGE, "must differ from the begin; null ends quiet hours")


PREFERENCES = Shape(
    {
        "all": Boolean(),
        "categories": FreeObject(
            max_keys=100,
            values=Shape({channel.value: Boolean(nullable=True) for channel in Channel}),
        ),
        "quiet_hours": Shape(
            {"from": Clock(required=True), "to": Clock(required=True)}, check=_quiet_hours, nullable=True
        ),
    },
    name="PreferencesIn",
)

SUPPRESSION = Shape(
    {
        "channel": Choice(ADDRESS_CHANNELS, required=True),
        "address": Text(min=1, max=320, required=True),
        "reason": Choice(SuppressionReason, default=SuppressionReason.MANUAL.value),
        "category": Text(min=1, max=100, nullable=True),
        "note": Text(max=500, nullable=True),
        "expires_at": Time(nullable=True),
    },
    check=lambda parsed, path, errors: _normal_address(parsed, path, errors, "address"),
    name="SuppressionIn",
)


class AnyAddress(Field):
    """An email address or a phone number, whichever it looks like: a filter."""

    def parse(self, value: Any, path: Path, errors: Errors) -> Any:
        found = normal_email(value) if "@" in value else normal_phone(value)
        return found or errors.add(path, FieldCode.WRONG_TYPE, "must be an email address or a phone number in E.164")

    def from_text(self, text: str, path: Path, errors: Errors) -> Any:
        return self.parse("+" + text[1:] if text.startswith(" ") else text, path, errors)

    def schema(self) -> dict[str, Any]:
        return {"type": "string"}
