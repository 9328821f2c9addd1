"""Text with a meaning: addresses, times, places. Each field returns the one normal form that is stored."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time
from functools import cache, lru_cache
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID
from zoneinfo import available_timezones

import phonenumbers
from email_validator import EmailNotValidError, validate_email

from apps.rest.catalogue import FieldCode
from apps.rest.paths import Path
from apps.rest.validation import Errors, Field, Text

SANDBOX_EMAIL_DOMAIN = "sandbox.invalid"

_E164 = re.compile(r"\+[1-9][0-9]{6,14}", re.ASCII)
# RFC 3339 5.6, which datetime.fromisoformat is wider than (ordinal dates, no offset, basic form).
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_LOCALE = re.compile(
    r"([A-Za-z]{2,3})(?:-([A-Za-z]{4}))?(?:-([A-Za-z]{2}|[0-9]{3}))?((?:-(?:[A-Za-z0-9]{5,8}|[0-9][A-Za-z0-9]{3}))*)",
    re.ASCII,
)
# What most addresses look like. email-validator gives the same answer for these, at forty times the cost; all
# others go to it, and so do the top-level domains that it refuses (RFC 6761).
_PLAIN_EMAIL = re.compile(
    r"(?P<local>[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*)"
    r"@(?P<domain>(?:[A-Za-z0-9](?:[A-Za-z0-9]|-(?!-)){0,62}\.)+(?!test|local|localhost|invalid|onion|arpa)[A-Za-z]{2,24})",
    re.ASCII | re.IGNORECASE,
)


def normal_email(text: str) -> str | None:
    """The address with its domain in lower case and in ASCII, or None. Never asks the DNS.

    A local part beyond ASCII is refused: not every provider can deliver to it (RFC 6531).
    Everything at `sandbox.invalid` passes, though no such domain can exist.
    """
    if len(text) > 254:
        return None
    plain = _PLAIN_EMAIL.fullmatch(text)
    if plain and len(plain["local"]) <= 64 and "-." not in plain["domain"]:
        return f"{plain['local']}@{plain['domain'].lower()}"
    local, _, domain = text.rpartition("@")
    normal_domain = _normal_domain(domain)
    # The local part for itself, beside a domain that costs nothing.
    stand_in = normal_domain and _checked_email(f"{local}@example.com")
    if not normal_domain or not stand_in:
        return None
    email = f"{stand_in.rpartition('@')[0]}@{normal_domain}"
    return email if len(email) <= 254 and len(text.encode()) <= 254 else None


@lru_cache(maxsize=4096)
def _normal_domain(domain: str) -> str | None:
    """In lower case and in ASCII, or None. Kept: IDNA is most of what an address costs, and many share a domain."""
    if domain.lower() == SANDBOX_EMAIL_DOMAIN:
        return SANDBOX_EMAIL_DOMAIN
    email = _checked_email(f"a@{domain}")
    return email and email.rpartition("@")[2]


def _checked_email(text: str) -> str | None:
    try:
        return validate_email(text, check_deliverability=False, allow_smtputf8=False, strict=True).ascii_email
    except EmailNotValidError:
        return None


def normal_phone(text: str) -> str | None:
    """The number in E.164, or None. A number must be possible, not assigned: plans change faster than tables."""
    if _E164.fullmatch(text) is None:
        return None
    try:
        number = phonenumbers.parse(text)
    except phonenumbers.NumberParseException:
        return None
    return text if phonenumbers.is_possible_number(number) else None


def normal_locale(text: str) -> str | None:
    """A BCP 47 tag in its usual case (`zh-Hant-TW`), or None."""
    found = _LOCALE.fullmatch(text)
    if found is None or len(text) > 35:
        return None
    language, script, region, rest = found.groups()
    parts = [language.lower(), script.title() if script else "", region.upper() if region else ""]
    return "-".join(part for part in parts if part) + rest.lower()


def normal_time(text: str) -> datetime | None:
    """An RFC 3339 time as aware UTC; beyond microseconds it is cut. None for anything else."""
    found = _RFC3339.fullmatch(text)
    if found is None:
        return None
    day, clock, fraction, offset = found.groups()
    try:
        at = datetime.fromisoformat(f"{day}T{clock}.{(fraction or '').ljust(6, '0')[:6]}{offset.upper()}")
        return at.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


@cache
def time_zones() -> frozenset[str]:
    return frozenset(zone for zone in available_timezones() if not zone.startswith(("posix", "right", "localtime")))


class Email(Field):
    def parse(self, value: Any, path: Path, errors: Errors) -> Any:
        if type(value) is not str:
            return errors.add(path, FieldCode.WRONG_TYPE, "must be a string")
        return normal_email(value) or errors.add(path, FieldCode.INVALID_EMAIL, "is no email address")

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "email", "maxLength": 254}


class Phone(Field):
    def parse(self, value: Any, path: Path, errors: Errors) -> Any:
        if type(value) is not str:
            return errors.add(path, FieldCode.WRONG_TYPE, "must be a string")
        return normal_phone(value) or errors.add(
            path, FieldCode.INVALID_PHONE, "must be a phone number in E.164, e.g. +4915112345678"
        )

    def from_text(self, text: str, path: Path, errors: Errors) -> Any:
        # In a query string a bare + is a space.
        return self.parse("+" + text[1:] if text.startswith(" ") else text, path, errors)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": "^\\+[1-9][0-9]{6,14}$"}


class Locale(Field):
    def parse(self, value: Any, path: Path, errors: Errors) -> Any:
        if type(value) is not str:
            return errors.add(path, FieldCode.WRONG_TYPE, "must be a string")
        return normal_locale(value) or errors.add(
            path, FieldCode.INVALID_LOCALE, "must be a BCP 47 language tag, e.g. de or de-AT"
        )

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "maxLength": 35}


class TimeZone(Field):
    def parse(self, value: Any, path: Path, errors: Errors) -> Any:
        if type(value) is not str:
            return errors.add(path, FieldCode.WRONG_TYPE, "must be a string")
        if value in time_zones():
            return value
        return errors.add(path, FieldCode.INVALID_TIME_ZONE, "must be an IANA time zone, e.g. Europe/Berlin")

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "maxLength": 64}


class Country(Text):
    """ISO 3166-1 alpha-2, upper case."""

    def __init__(self, **options: Any) -> None:
        super().__init__(pattern="[A-Z]{2}", says="must be a country code of two capital letters, e.g. DE", **options)


class Time(Field):
    """RFC 3339 in, an aware UTC datetime out."""

    def parse(self, value: Any, path: Path, errors: Errors) -> Any:
        if type(value) is not str:
            return errors.add(path, FieldCode.WRONG_TYPE, "must be a string")
        return normal_time(value) or errors.add(
            path, FieldCode.INVALID_TIME, "must be an RFC 3339 time with an offset, e.g. 2026-11-22T20:30:00Z"
        )

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "date-time"}


class Clock(Field):
    """A time of day, `HH:MM`, as a naive `datetime.time`."""

    def parse(self, value: Any, path: Path, errors: Errors) -> Any:
        if type(value) is not str:
            return errors.add(path, FieldCode.WRONG_TYPE, "must be a string")
        if not re.fullmatch(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]", value, re.ASCII):
            return errors.add(path, FieldCode.INVALID_TIME, "must be a time of day, e.g. 22:00")
        return time.fromisoformat(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"}


class Day(Field):
    """A calendar date, `YYYY-MM-DD`."""

    def parse(self, value: Any, path: Path, errors: Errors) -> Any:
        if type(value) is not str:
            return errors.add(path, FieldCode.WRONG_TYPE, "must be a string")
        if re.fullmatch(r"\d{4}-\d\d-\d\d", value, re.ASCII):
            try:
                return datetime.strptime(value, "%Y-%m-%d").date()
            except ValueError:
                pass
        return errors.add(path, FieldCode.INVALID_TIME, "must be a date, e.g. 2026-11-23")

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "date"}


class Id(Field):
    """A UUID of ours."""

    def parse(self, value: Any, path: Path, errors: Errors) -> Any:
        if type(value) is not str:
            return errors.add(path, FieldCode.WRONG_TYPE, "must be a string")
        if re.fullmatch(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", value, re.ASCII):
            return UUID(value)
        return errors.add(path, FieldCode.WRONG_TYPE, "must be a UUID")

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "uuid"}


class HttpsUrl(Field):
    """An absolute https address without credentials; whether it may be fetched is for the egress guard."""

    def __init__(self, *, max: int = 2048, **options: Any) -> None:
        super().__init__(**options)
        self.max = max

    def parse(self, value: Any, path: Path, errors: Errors) -> Any:
        if type(value) is not str:
            return errors.add(path, FieldCode.WRONG_TYPE, "must be a string")
        if len(value) > self.max:
            return errors.add(path, FieldCode.TOO_LONG, f"at most {self.max} characters")
        if not is_https_url(value):
            return errors.add(path, FieldCode.INVALID_URL, "must be an https address")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "uri", "maxLength": self.max}


def is_https_url(text: str) -> bool:
    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        return False
    try:
        parts = urlsplit(text)
        return parts.scheme == "https" and bool(parts.hostname) and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        return False
