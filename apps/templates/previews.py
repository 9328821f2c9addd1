"""What would it look like? One version rendered for an author's eyes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from apps.templates.versions import VersionInfo
from notifier.message import Content, EmailContent, PushContent
from notifier.stages.render import RenderError, payload_bytes, render, sms_segments


def preview(shown: VersionInfo, channels: Iterable[str], locale: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Per channel: the locale that answers, and the rendered parts or `error` (`code`, `detail`). Raises nothing."""
    result = {}
    for channel in channels:
        entry: dict[str, Any] = {"locale": shown.compiled.resolve(channel, locale)}
        try:
            entry.update(as_parts(render(shown.compiled, channel, locale, data)))
        except RenderError as error:
            entry["error"] = {"code": error.code, "detail": error.detail}
        result[channel] = entry
    return result


def as_parts(content: Content) -> dict[str, Any]:
    """The rendered parts as the API shows them: with `bytes` for push, `encoding` and `segments` for SMS."""
    if isinstance(content, PushContent):
        return {"title": content.title, "body": content.body, "bytes": payload_bytes(content)}
    if isinstance(content, EmailContent):
        return {"subject": content.subject, "text": content.text, "html": content.html}
    encoding, segments = sms_segments(content.text)
    return {"text": content.text, "encoding": encoding, "segments": segments}
