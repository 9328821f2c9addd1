"""What does it say? Templates compiled once, rendered per recipient into what a channel carries.

Knows no database: a version comes in as its id and its texts, `{"email": {"en": {"subject": ..., "html": ...}}}`.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from threading import Lock
from typing import Any

import msgspec

from notifier.message import Channel, Content, EmailContent, PushContent, PushOptions, SmsContent
from notifier.stages.liquid import OUTPUT_LIMIT_BYTES, Part, Refused, TemplateError
from notifier.stages.texts import HEADER_BREAKERS, clean_sms, html_to_text, sms_segments, tidy
from notifier.stages.variables import Needs, Segments, needs_of

__all__ = [
    "Compiled",
    "RenderError",
    "Renderer",
    "compile_inline",
    "compile_version",
    "missing_variables",
    "payload_bytes",
    "render",
    "sms_segments",
]

FIELDS: dict[str, tuple[str, ...]] = {
    Channel.PUSH: ("title", "body"),
    Channel.SMS: ("text",),
    Channel.EMAIL: ("subject", "html", "text"),
}
PUSH_LIMIT_BYTES = 4096  # APNs and FCM alike; what a platform narrows further, its adapter checks
PUSH_ENVELOPE_BYTES = 160  # delivery id, claim number and tracking token, as the adapters add them
SMS_LIMIT_CHARS = 1600  # the API's limit, about ten segments
SUBJECT_LIMIT_CHARS = 998  # RFC 5322 2.1.1
EMAIL_HEADERS = frozenset({"In-Reply-To", "References", "Importance", "List-Id", "X-Entity-Ref-ID"})
INLINE_LOCALE = "und"  # BCP 47: undetermined

_COMPILED_LIMIT = 1024  # versions kept per process; 10-100 kB each
_KEPT_PER_SHIFT = 256  # contents; an email is some 10 kB, and most notifications have one recipient
_SHARED_PART_CHARS = 16 * 1024  # equal sources up to this size are parsed once, whichever version they are in
_NO_OPTIONS: Mapping[str, Any] = {}
_PUSH_FIELDS = frozenset(PushOptions.__dataclass_fields__)
_PLAIN_PUSH = PushOptions()
_LIQUID = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
_HIDDEN = re.compile("\ue000([0-9]+)\ue001")


class RenderError(Exception):
    """This message cannot be made. `code` is a reason code of the API, `detail` is for people and holds no data."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail


class Compiled:
    """A version's texts, each parsed when first used. Safe to share between threads: parsing twice does no harm."""

    def __init__(self, id: int | str, channels: Mapping[str, Mapping[str, Mapping[str, str]]], default: str) -> None:
        self.id = id
        self._channels = channels
        self._default = default
        self._parts: dict[tuple[str, str], dict[str, Part]] = {}
        self._needs: dict[str, tuple[Needs, ...]] = {}
        self._resolved: dict[tuple[str, str], str | None] = {}

    def __repr__(self) -> str:
        return f"<Compiled {self.id}>"

    def locales(self, channel: str) -> tuple[str, ...]:
        """The locales there are texts in for `channel`; empty when the version has no part for it."""
        return tuple(self._channels.get(channel, ()))

    def variables(self, channel: str | None = None) -> tuple[str, ...]:
        """The variables used, needed or not, sorted: `("order.eta", "order.id")`. Raises RenderError."""
        channels = [channel] if channel else list(self._channels)
        parts = (
            part for name in channels for locale in self.locales(name) for part in self.parts(name, locale).values()
        )
        return tuple(sorted(set().union(*(part.paths for part in parts))))

    def resolve(self, channel: str, locale: str) -> str | None:
        """The locale that answers for `locale`: `de-AT`, then `de`, then the version's default. None: no text."""
        key = (channel, locale)
        if key not in self._resolved:
            if len(self._resolved) > 1000:  # locales come from people's records: any string
                self._resolved.clear()
            self._resolved[key] = self._find(channel, locale)
        return self._resolved[key]

    def parts(self, channel: str, locale: str) -> dict[str, Part]:
        """The parsed texts of a channel in one of its own locales. Raises RenderError for a broken source."""
        key = (channel, locale)
        if key not in self._parts:
            try:
                self._parts[key] = _parse(channel, self._channels[channel][locale])
            except TemplateError as error:
                raise RenderError("render_error", f"{channel} {locale}: {error}") from None
        return self._parts[key]

    def needs(self, channel: str) -> tuple[Needs, ...]:
        if channel not in self._needs:
            texts = self._channels.get(channel, {})
            # A derived text uses what its HTML uses, so only the written ones are asked.
            written = ((locale, name) for locale, fields in texts.items() for name in fields)
            parts = (self.parts(channel, locale).get(name) for locale, name in written)
            found = (needs_of(part) for part in parts if part and part.paths)
            self._needs[channel] = tuple({repr(needs): needs for needs in found}.values())
        return self._needs[channel]

    def _find(self, channel: str, locale: str) -> str | None:
        there = {fold_locale(name): name for name in self.locales(channel)}
        for wanted in (locale, self._default):
            subtags = fold_locale(wanted).split("-")
            for length in range(len(subtags), 0, -1):
                if found := there.get("-".join(subtags[:length])):
                    return found
        return None


_compiled: OrderedDict[int | str, Compiled] = OrderedDict()
_lock = Lock()


def compile_version(id: int | str, channels: Mapping[str, Any], default_locale: str) -> Compiled:
    """The compiled version, from this process's cache when `id` was seen before: a version never changes.

    `id` is a template version's id, or any string that is as immutable (a notification's own content).
    """
    with _lock:
        if found := _compiled.get(id):
            _compiled.move_to_end(id)
            return found
        made = _compiled[id] = Compiled(id, channels, default_locale)
        if len(_compiled) > _COMPILED_LIMIT:
            _compiled.popitem(last=False)
        return made


def compile_inline(content: Mapping[str, Mapping[str, str]]) -> Compiled:
    """A notification's own `content`, `{"sms": {"text": ...}}`: one text for every locale."""
    return Compiled("inline", {channel: {INLINE_LOCALE: fields} for channel, fields in content.items()}, INLINE_LOCALE)


def missing_variables(compiled: Compiled, channels: Iterable[str], data: Mapping[str, Any]) -> list[Segments]:
    """The variables that rendering these channels would need and `data` lacks, in all locales, in the text's order.

    Each is a path, `("order", "items", 0, "name")`. `notifier.stages.variables` has the rule. A channel without
    texts needs nothing. Raises RenderError for a broken source.
    """
    found: dict[Segments, None] = {}
    for channel in channels:
        for needs in compiled.needs(channel):
            found.update(dict.fromkeys(needs.missing(data)))
    return list(found)


def render(
    compiled: Compiled,
    channel: str,
    locale: str,
    data: Mapping[str, Any],
    options: Mapping[str, Mapping[str, Any]] = _NO_OPTIONS,
) -> Content:
    """One message's content. `options` holds the notification's `push`, `email` and `sms` objects, by channel.

    Raises RenderError and nothing else, whatever the data is: `no_content`, `render_error`, `payload_too_large`
    or `rejected_content`.
    """
    resolved = compiled.resolve(channel, locale)
    if resolved is None:
        raise RenderError("no_content", f"there is no {channel} text")
    parts = compiled.parts(channel, resolved)
    texts = {}
    for name, part in parts.items():
        try:
            texts[name] = part.render(data)
        except Refused as refusal:
            code = "payload_too_large" if refusal.too_large else "render_error"
            raise RenderError(code, f"{channel} {name}: {refusal}") from None
    return _FINISH[channel](texts, options.get(channel) or _NO_OPTIONS)


class Renderer:
    """Renders the deliveries of one shift, each text once: people who get the same data in the same language share
    the content. A refusal is remembered too.

    The same data means the same object, not an equal one: comparing would cost as much as rendering.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], tuple[Content | RenderError, tuple[object, ...]]] = {}

    def render(
        self,
        compiled: Compiled,
        channel: str,
        locale: str,
        data: Mapping[str, Any],
        options: Mapping[str, Mapping[str, Any]] = _NO_OPTIONS,
    ) -> Content:
        """As `render` of this module. Neither `data` nor `options` may be changed while this lives."""
        key = (id(compiled), channel, compiled.resolve(channel, locale), id(data), id(options))
        found = self._made.get(key)
        if found is None:
            if len(self._made) >= _KEPT_PER_SHIFT:
                self._made.clear()
            made: Content | RenderError
            try:
                made = render(compiled, channel, locale, data, options)
            except RenderError as error:
                made = error
            # What the key names is kept alive beside it, so that no other object takes its id.
            found = self._made[key] = made, (compiled, data, options)
        if isinstance(found[0], RenderError):
            raise RenderError(found[0].code, found[0].detail)
        return found[0]


def payload_bytes(content: PushContent) -> int:
    """About how large a push payload is on the wire: its texts and options as JSON, and what adapters add."""
    return len(msgspec.json.encode(content)) - _EMPTY_PUSH_BYTES + PUSH_ENVELOPE_BYTES


def _part(source: str, *, html: bool) -> Part:
    return _shared_part(source, html) if len(source) <= _SHARED_PART_CHARS else Part(source, html=html)


@lru_cache(maxsize=1024)
def _shared_part(source: str, html: bool) -> Part:
    return Part(source, html=html)


def _parse(channel: str, fields: Mapping[str, str]) -> dict[str, Part]:
    parts = {
        name: Part(fields[name], html=name == "html")
        for name in FIELDS.get(channel, ())
        if fields.get(name, "").strip()
    }
    if "html" in parts and "text" not in parts:
        parts["text"] = derived_text(fields["html"])
    return parts


class _DerivedText(Part):
    """A text part made from HTML: the lines that its tags leave empty are taken out again."""

    __slots__ = ()

    def render(self, data: Mapping[str, Any]) -> str:
        return tidy(super().render(data))


def derived_text(source: str) -> Part:
    """The text part of an HTML-only email: derived from the source, so that it costs no more than a written one.

    Raises TemplateError when tags of Liquid and HTML overlap in a way that leaves no whole text.
    """
    return _shared_derived_text(source) if len(source) <= _SHARED_PART_CHARS else _derive_text(source)


def _derive_text(source: str) -> Part:
    tags: list[str] = []

    def hide(match: re.Match[str]) -> str:
        tags.append(match[0])
        return f"\ue000{len(tags) - 1}\ue001"

    text = html_to_text(_LIQUID.sub(hide, source))
    return _DerivedText(_HIDDEN.sub(lambda match: tags[int(match[1])], text))


_shared_derived_text = lru_cache(maxsize=256)(_derive_text)


def fold_locale(locale: str) -> str:
    return locale.replace("_", "-").lower()


def _header(what: str, value: object) -> str:
    """A value for a header: no line breaks or controls, whoever wrote them. The text of the refusal holds no value."""
    text = str(value).replace("\t", " ").strip()
    if HEADER_BREAKERS.search(text):
        raise RenderError("rejected_content", f"{what} holds a line break or control character")
    return text


def _body(what: str, text: str) -> str:
    if "\x00" in text:
        raise RenderError("rejected_content", f"{what} holds a NUL")
    return text


def _push(texts: Mapping[str, str], options: Mapping[str, Any]) -> PushContent:
    title, body = _body("title", texts.get("title", "").strip()), _body("body", texts.get("body", "").strip())
    chosen = _PLAIN_PUSH
    if options:
        chosen = PushOptions(**{name: options[name] for name in _PUSH_FIELDS if options.get(name) is not None})
    if not title and not body and not chosen.silent:
        raise RenderError("rejected_content", "title and body are empty")
    content = PushContent(title, body, chosen)
    size = payload_bytes(content)
    if size > PUSH_LIMIT_BYTES:
        raise RenderError("payload_too_large", f"the push is {size} bytes, {PUSH_LIMIT_BYTES} are allowed")
    return content


def _sms(texts: Mapping[str, str], options: Mapping[str, Any]) -> SmsContent:
    text = clean_sms(_body("text", texts.get("text", "")))
    if not text:
        raise RenderError("rejected_content", "the text is empty")
    if len(text) > SMS_LIMIT_CHARS:
        raise RenderError("payload_too_large", f"the text is {len(text)} characters, {SMS_LIMIT_CHARS} are allowed")
    return SmsContent(text, _header("sender", options.get("sender") or ""))


def _email(texts: Mapping[str, str], options: Mapping[str, Any]) -> EmailContent:
    subject = _header("subject", texts.get("subject", ""))
    if not subject:
        raise RenderError("rejected_content", "the subject is empty")
    if len(subject) > SUBJECT_LIMIT_CHARS:
        raise RenderError("payload_too_large", f"the subject is longer than {SUBJECT_LIMIT_CHARS} characters")
    html, text = _body("html", texts.get("html", "")), _body("text", texts.get("text", ""))
    if not html.strip() and not text.strip():
        raise RenderError("rejected_content", "the body is empty")
    if len(html) + len(text) > OUTPUT_LIMIT_BYTES // 4:
        size = len(html.encode()) + len(text.encode())
        if size > OUTPUT_LIMIT_BYTES:
            raise RenderError("payload_too_large", f"the bodies are {size} bytes, {OUTPUT_LIMIT_BYTES} are allowed")
    headers = {}
    for name, value in (options.get("headers") or _NO_OPTIONS).items():
        if name not in EMAIL_HEADERS:
            raise RenderError("rejected_content", "a header is not one of " + ", ".join(sorted(EMAIL_HEADERS)))
        headers[name] = _header(name, value)
    sender, reply_to = _header("from", options.get("from") or ""), _header("reply_to", options.get("reply_to") or "")
    return EmailContent(subject, text, html, sender, reply_to, headers)


_FINISH: dict[str, Callable[[Mapping[str, str], Mapping[str, Any]], Content]] = {
    Channel.PUSH: _push,
    Channel.SMS: _sms,
    Channel.EMAIL: _email,
}
_EMPTY_PUSH_BYTES = len(msgspec.json.encode(PushContent("", "")))
