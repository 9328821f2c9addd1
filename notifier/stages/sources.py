"""May this be stored? The checks of a template's sources, made when it is saved and when a request brings its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from notifier.message import Channel
from notifier.stages.liquid import Part, TemplateError
from notifier.stages.render import FIELDS, derived_text, fold_locale
from notifier.stages.texts import HEADER_BREAKERS

SOURCE_LIMIT_BYTES = 64 * 1024  # of one part of a stored template
LOCALES_LIMIT = 50
REQUIRED: dict[str, tuple[str, ...]] = {
    Channel.PUSH: ("title", "body"),
    Channel.SMS: ("text",),
    Channel.EMAIL: ("subject",),
}
LOCALE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z]{4})?(-([A-Za-z]{2}|[0-9]{3}))?(-([A-Za-z0-9]{5,8}|[0-9][A-Za-z0-9]{3}))*")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong and where: `path` from the checked value, `("email", "en", "subject")`; `code` as in the API."""

    path: tuple[str, ...]
    code: str
    detail: str


def compile_check(channels: Any, default_locale: str) -> list[Problem]:
    """Everything wrong with a version's texts, `{"sms": {"en": {"text": "..."}}}`. Empty: they can be stored.

    Each channel needs a text in the default locale, or in a more general one (`de` for `de-AT`).
    """
    problems = list(_locale_problems(("default_locale",), default_locale))
    if problems:
        return problems
    if not isinstance(channels, Mapping):
        return [Problem((), "wrong_type", "must be an object of channels")]
    if not channels:
        return [Problem((), "no_content", f"needs at least one of {_CHANNELS}")]
    for channel, locales in channels.items():
        if channel not in FIELDS:
            problems.append(Problem((channel,), "unknown_field", f"known here: {_CHANNELS}"))
        elif not isinstance(locales, Mapping):
            problems.append(Problem((channel,), "wrong_type", "must be an object of locales"))
        else:
            problems.extend(_channel_problems(channel, locales, default_locale))
    return problems


def check_part(
    channel: str, fields: Any, at: tuple[str, ...] = (), limit_bytes: int = SOURCE_LIMIT_BYTES
) -> list[Problem]:
    """Everything wrong with one channel's texts in one language, e.g. the `{"text": "..."}` of `content.sms`."""
    if not isinstance(fields, Mapping):
        return [Problem(at, "wrong_type", "must be an object")]
    problems = []
    for name, source in fields.items():
        place = (*at, name)
        if name not in FIELDS[channel]:
            problems.append(Problem(place, "unknown_field", f"known here: {', '.join(FIELDS[channel])}"))
        elif not isinstance(source, str):
            problems.append(Problem(place, "wrong_type", "must be a string"))
        else:
            problems.extend(_source_problems(name, source, place, limit_bytes))
    for name in REQUIRED[channel]:
        if name not in fields or (isinstance(fields[name], str) and not fields[name].strip()):
            problems.append(Problem((*at, name), "required", "is required"))
    if channel == Channel.EMAIL and not any(fields.get(name) for name in ("html", "text")):
        problems.append(Problem((*at, "html"), "required", "needs html or text"))
    if not problems and fields.get("html") and not fields.get("text"):
        problems.extend(_derivation_problems(fields["html"], at))
    return problems


def _channel_problems(channel: str, locales: Mapping[str, Any], default_locale: str) -> Iterator[Problem]:
    if len(locales) > LOCALES_LIMIT:
        yield Problem((channel,), "too_many", f"at most {LOCALES_LIMIT} locales")
        return
    seen: set[str] = set()
    for locale, fields in locales.items():
        at = (channel, locale)
        yield from _locale_problems(at, locale)
        if fold_locale(locale) in seen:
            yield Problem(at, "conflict", "is named twice, in different spellings")
        seen.add(fold_locale(locale))
        yield from check_part(channel, fields, at)
    subtags = fold_locale(default_locale).split("-")
    if not any("-".join(subtags[:length]) in seen for length in range(1, len(subtags) + 1)):
        yield Problem((channel, default_locale), "required", "needs a text in the default locale")


def _locale_problems(at: tuple[str, ...], locale: object) -> Iterator[Problem]:
    if not isinstance(locale, str) or len(locale) > 35 or not LOCALE.fullmatch(locale):
        yield Problem(at, "invalid_locale", "must be a BCP 47 tag such as en, de-AT or zh-Hant-TW")


def _source_problems(name: str, source: str, place: tuple[str, ...], limit_bytes: int) -> Iterator[Problem]:
    size = len(source.encode())
    if size > limit_bytes:
        yield Problem(place, "too_long", f"at most {limit_bytes} bytes, this has {size}")
        return
    if "\x00" in source:
        yield Problem(place, "invalid_template", "holds a NUL")
    if name == "subject" and HEADER_BREAKERS.search(source.replace("\t", " ").strip()):
        yield Problem(place, "invalid_template", "a subject is one line: it holds a line break or control character")
    try:
        Part(source, html=name == "html")
    except TemplateError as error:
        yield Problem(place, "invalid_template", str(error))


def _derivation_problems(source: str, at: tuple[str, ...]) -> Iterator[Problem]:
    try:
        derived_text(source)
    except TemplateError as error:
        detail = f"is required: none can be derived, because tags of HTML and Liquid overlap ({error})"
        yield Problem((*at, "text"), "required", detail)


_CHANNELS = ", ".join(FIELDS)
