"""Whether a request can be accepted: grants, template, variables, times. What a person chose is not asked here:
it never blocks acceptance, it becomes a suppressed delivery with a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from apps.clients.callers import Caller
from apps.notifications.claims import merged
from apps.notifications.clock import database_now
from apps.notifications.services.layout import DEFAULT_LOCALE, category_by_key
from apps.people.hashing import hash_address, hash_token
from apps.people.models import Category
from apps.people.sandbox import is_sandbox_recipient
from apps.rest.catalogue import FieldCode
from apps.rest.paths import Path
from apps.rest.problems import Problem
from apps.rest.validation import Errors
from apps.templates import services as templates
from apps.templates.versions import VersionInfo
from notifier.message import Channel, Lane
from notifier.stages.render import (
    Compiled,
    RenderError,
    compile_inline,
    missing_variables,
    render,
)
from notifier.stages.sources import check_part

MOST_AHEAD = timedelta(days=30)
INLINE_LIMIT_BYTES = 512 * 1024  # html and text of an email, the largest
EXPIRES_AFTER_S: dict[str, int] = {Lane.CRITICAL: 600, Lane.NORMAL: 24 * 3600, Lane.BULK: 72 * 3600}
GRANTED_LANES = frozenset({Lane.CRITICAL, Lane.BULK})  # normal is everybody's


@dataclass(frozen=True, slots=True)
class Checked:
    """A request that can be accepted, with everything it names resolved and frozen."""

    at: datetime
    event_id: str
    reference: str
    template_key: str
    template_number: int | None
    template_version_id: int | None
    default_locale: str
    written_channels: frozenset[str]
    category: Category
    lane: str
    channels: tuple[str, ...]
    due_at: datetime
    expires_at: datetime
    recipients: list[dict[str, Any]]
    data: dict[str, Any]
    options: dict[str, Any]
    inline: dict[str, Any] | None
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Said:
    """What is to be said: the template's version or the request's own content."""

    compiled: Compiled
    written: tuple[str, ...]
    default_locale: str
    category_key: str = ""
    version: VersionInfo | None = None

    @property
    def name(self) -> str:
        return f"template {self.version.label}" if self.version else "the content"


def check(caller: Caller, body: Mapping[str, Any], path: Path, errors: Errors) -> Checked | None:
    """Look at a body in normal form; faults are added to `errors`, and None is returned.

    Raises Problem (403) for what the client may not do.
    """
    before = errors.total
    said = _said(caller, body, path, errors)
    if said is None:
        return None
    category = _category(body, said, path, errors)
    if category is None:
        return None
    _check_grants(caller, body, category)
    channels = _channels(caller, body, said, category, path, errors)
    lane = body.get("lane") or category.lane
    now = database_now()
    due_at, expires_at = _times(body, now, category, lane, path, errors)
    recipients = _recipients(body["to"], path, errors)
    _check_data(said, channels, body, path, errors)
    if errors.total != before:
        return None
    return Checked(
        at=now,
        event_id=body.get("event_id", ""),
        reference=body.get("reference", ""),
        template_key=said.version.key if said.version else "",
        template_number=said.version.number if said.version else None,
        template_version_id=said.version.id if said.version else None,
        default_locale=said.default_locale,
        written_channels=frozenset(said.written),
        category=category,
        lane=lane,
        channels=channels,
        due_at=due_at,
        expires_at=expires_at,
        recipients=recipients,
        data=body["data"],
        options={name: body[name] for name in ("push", "email", "sms") if body.get(name)},
        inline=body.get("content"),
        metadata=body["metadata"],
    )


def _said(caller: Caller, body: Mapping[str, Any], path: Path, errors: Errors) -> _Said | None:
    if "content" in body:
        return _inline(caller, body, path, errors)
    asked = body["template"]
    key, number = (asked, None) if isinstance(asked, str) else (asked["key"], asked.get("version"))
    version = templates.published(key) if number is None else templates.version(key, number)
    if version is None:
        if number is None and templates.version(key, 1) is not None:
            errors.add((path, "template"), FieldCode.NOT_PUBLISHED, f"template {key} has no published version")
        else:
            which = key if number is None else f"{key} version {number}"
            errors.add((path, "template"), FieldCode.NOT_FOUND, f"there is no template {which}")
        return None
    return _Said(
        version.compiled, tuple(version.channels), version.default_locale, version.category_key, version=version
    )


def _inline(caller: Caller, body: Mapping[str, Any], path: Path, errors: Errors) -> _Said | None:
    if not caller.client.may_send_inline:
        raise Problem("inline-content-not-allowed")
    content = body["content"]
    if not content:
        errors.add((path, "content"), FieldCode.NO_CONTENT, "needs push, sms or email")
        return None
    if "email" in content and not (content["email"].get("html") or content["email"].get("text")):
        errors.add(((path, "content"), "email"), FieldCode.NO_CONTENT, "needs html or text")
        return None
    before = errors.total
    for channel, fields in content.items():
        for problem in check_part(channel, fields, (channel,), limit_bytes=INLINE_LIMIT_BYTES):
            templates.report(problem, (path, "content"), errors)
    if errors.total != before:
        return None
    return _Said(compile_inline(content), tuple(content), DEFAULT_LOCALE)


def _category(body: Mapping[str, Any], said: _Said, path: Path, errors: Errors) -> Category | None:
    asked = body.get("category", "")
    if asked and said.category_key and asked != said.category_key:
        errors.add((path, "category"), FieldCode.CATEGORY_MISMATCH, f"{said.name} is of category {said.category_key}")
        return None
    key = asked or said.category_key
    if not key:
        errors.add((path, "category"), FieldCode.REQUIRED, "is required with content")
        return None
    category = category_by_key(key)
    if category is None:
        errors.add((path, "category"), FieldCode.NOT_FOUND, f"there is no category {key}")
    return category


def _check_grants(caller: Caller, body: Mapping[str, Any], category: Category) -> None:
    client = caller.client
    if client.categories is not None and category.key not in client.categories:
        raise Problem("category-not-allowed", f"this client may not send {category.key}")
    for channel in body.get("channels", ()):
        if channel not in client.channels:
            raise Problem("channel-not-allowed", f"this client may not use {channel}")
    lane = body.get("lane")
    if lane in GRANTED_LANES and lane != category.lane and lane not in client.lanes:
        raise Problem("lane-not-allowed", f"this client has no grant for the lane {lane}")
    senders = [(body.get("email") or {}).get("from"), (body.get("sms") or {}).get("sender")]
    for sender in filter(None, senders):
        if sender not in client.senders:
            raise Problem("sender-not-allowed", "the sender is not in this client's list")


def _channels(
    caller: Caller, body: Mapping[str, Any], said: _Said, category: Category, path: Path, errors: Errors
) -> tuple[str, ...]:
    """The channels that may be used, in the order asked for; narrowed by template, category and client."""
    asked = body.get("channels")
    if asked is None:
        return tuple(
            channel
            for channel in Channel
            if channel in said.written and channel in category.channels and channel in caller.client.channels
        ) or _none(path, errors, said, category)
    for index, channel in enumerate(asked):
        if channel not in said.written:
            errors.add(((path, "channels"), index), FieldCode.NO_CONTENT, f"{said.name} has no part for {channel}")
        elif channel not in category.channels:
            errors.add(((path, "channels"), index), FieldCode.NOT_ALLOWED, f"{category.key} does not go by {channel}")
    return tuple(asked)


def _none(path: Path, errors: Errors, said: _Said, category: Category) -> tuple[str, ...]:
    errors.add(
        (path, "template" if said.version else "content"),
        FieldCode.NO_CONTENT,
        f"{said.name}, the category {category.key} and this client have no channel in common",
    )
    return ()


def _times(
    body: Mapping[str, Any], now: datetime, category: Category, lane: str, path: Path, errors: Errors
) -> tuple[datetime, datetime]:
    due_at = max(body.get("send_at") or now, now)
    if due_at > now + MOST_AHEAD:
        errors.add((path, "send_at"), FieldCode.OUT_OF_RANGE, f"at most {MOST_AHEAD.days} days ahead")
    expires_at = body.get("expires_at")
    if expires_at is None:
        return due_at, due_at + timedelta(seconds=category.expires_after_s or EXPIRES_AFTER_S[lane])
    if expires_at <= now:
        errors.add((path, "expires_at"), FieldCode.IN_THE_PAST, "is over already")
    elif expires_at <= due_at:
        errors.add((path, "expires_at"), FieldCode.OUT_OF_RANGE, "must be after send_at")
    elif expires_at > due_at + MOST_AHEAD:
        errors.add((path, "expires_at"), FieldCode.OUT_OF_RANGE, f"at most {MOST_AHEAD.days} days after it is due")
    return due_at, expires_at


def _recipients(to: Iterable[dict[str, Any]], path: Path, errors: Errors) -> list[dict[str, Any]]:
    """The entries as they are stored: a raw address with its keyed hash, and whether it is a sandbox recipient."""
    seen: dict[tuple[str, str], int] = {}
    entries = []
    for index, entry in enumerate(to):
        stored = dict(entry)
        if "device" in entry:
            device = entry["device"]
            stored["hash"] = str(hash_token(device["platform"], device["token"]))
            stored["is_sandbox"] = is_sandbox_recipient(Channel.PUSH, device["token"], device["platform"])
            name = ("device", stored["hash"])
        elif "email" in entry or "phone" in entry:
            channel = Channel.EMAIL if "email" in entry else Channel.SMS
            value = entry.get("email") or entry["phone"]
            stored["hash"] = str(hash_address(channel, value))
            stored["is_sandbox"] = is_sandbox_recipient(channel, value)
            name = (channel, stored["hash"])
        else:
            name = ("user", entry["user_id"])
        if name in seen:
            detail = f"is the same as entry {seen[name]}"
            errors.add(((path, "to"), index), FieldCode.DUPLICATE_RECIPIENT, detail)
        seen.setdefault(name, index)
        entries.append(stored)
    return entries


def _check_data(said: _Said, channels: tuple[str, ...], body: Mapping[str, Any], path: Path, errors: Errors) -> None:
    """The template's variables and schema against the data, for everybody and for those with data of their own."""
    own = [(index, entry["data"]) for index, entry in enumerate(body["to"]) if entry.get("data")]
    if len(own) < len(body["to"]):
        _check_one(said, channels, body["data"], (path, "data"), errors)
        _check_size(said, channels, body, path, errors)
    for index, data in own:
        _check_one(said, channels, merged(body["data"], data), (((path, "to"), index), "data"), errors)


def _check_one(said: _Said, channels: tuple[str, ...], data: Mapping[str, Any], path: Path, errors: Errors) -> None:
    if said.version is not None:
        templates.check_data(said.version, channels, data, path, errors)
        return
    for variable in missing_variables(said.compiled, channels, data):
        at: Path = path
        for segment in variable:
            at = (at, segment)
        name = ".".join(str(segment) for segment in variable)
        errors.add(at, FieldCode.MISSING_VARIABLE, f"the content needs {name}")


def _check_size(said: _Said, channels: tuple[str, ...], body: Mapping[str, Any], path: Path, errors: Errors) -> None:
    """A push that cannot fit is refused now, not when it is sent."""
    if Channel.PUSH not in channels or errors:
        return
    options = {"push": body["push"]} if body.get("push") else {}
    try:
        render(said.compiled, Channel.PUSH, said.default_locale, body["data"], options)
    except RenderError as error:
        if error.code == "payload_too_large":
            errors.add((path, "data"), FieldCode.PAYLOAD_TOO_LARGE, error.detail)
