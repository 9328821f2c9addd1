"""Every error code of the API, with its status and what a caller should do: the one table behind answers and docs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FieldCode(StrEnum):
    """`errors[].code`: what is wrong with one field, query parameter or place in the body."""

    REQUIRED = "required"
    UNKNOWN_FIELD = "unknown_field"
    WRONG_TYPE = "wrong_type"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    TOO_MANY = "too_many"
    OUT_OF_RANGE = "out_of_range"
    INVALID_EMAIL = "invalid_email"
    INVALID_PHONE = "invalid_phone"
    INVALID_TOKEN = "invalid_token"
    INVALID_URL = "invalid_url"
    FORBIDDEN_ADDRESS = "forbidden_address"
    INVALID_TIME = "invalid_time"
    INVALID_TIME_ZONE = "invalid_time_zone"
    INVALID_LOCALE = "invalid_locale"
    IN_THE_PAST = "in_the_past"
    NOT_FOUND = "not_found"
    NOT_PUBLISHED = "not_published"
    NOT_ALLOWED = "not_allowed"
    MISSING_VARIABLE = "missing_variable"
    CONFLICT = "conflict"
    CATEGORY_MISMATCH = "category_mismatch"
    DUPLICATE_RECIPIENT = "duplicate_recipient"
    NO_CONTENT = "no_content"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    INVALID_TEMPLATE = "invalid_template"
    # Places in a body that is no acceptable JSON, under the 400 of the same name.
    INVALID_TEXT = "invalid_text"
    DUPLICATE_KEY = "duplicate_key"
    INVALID_NUMBER = "invalid_number"
    TOO_DEEP = "too_deep"


class Retry(StrEnum):
    NEVER = "No: the same request will fail again."
    MENDED = "After the request is mended."
    LATER = "Yes, after the seconds in Retry-After."
    SAME_KEY = "Yes, with the same Idempotency-Key."


@dataclass(frozen=True, slots=True)
class Entry:
    code: str
    status: int
    title: str
    retry: Retry
    text: str
    members: tuple[str, ...] = ()  # extra members of the answer


def _table(*entries: Entry) -> dict[str, Entry]:
    return {entry.code: entry for entry in entries}


CATALOGUE: dict[str, Entry] = _table(
    Entry("invalid-request", 400, "The request cannot be read", Retry.MENDED,
          "The request line, the host or a header is malformed."),
    Entry("invalid-json", 400, "The body is not JSON", Retry.MENDED,
          "The body must be one JSON value in UTF-8. `detail` names the line and column of the first fault."),
    Entry("duplicate-key", 400, "An object names a key twice", Retry.MENDED,
          "Parsers disagree on which of the two counts, so neither does. `errors` points at the key; in a "
          "body of more than 1 MiB `detail` names it."),
    Entry("invalid-number", 400, "A number is out of range", Retry.MENDED,
          "Integers reach from -2^53 to 2^53, other numbers must be finite; `NaN` and `Infinity` are not JSON. "
          "Send larger numbers as strings."),
    Entry("invalid-text", 400, "Text that cannot be stored", Retry.MENDED,
          "Text must be UTF-8 without U+0000 and without lone surrogates: in values, keys, the path, the query "
          "and headers."),
    Entry("too-deep", 400, "The body is nested too deeply", Retry.MENDED,
          "Objects and arrays may be nested 20 deep."),
    Entry("invalid-cursor", 400, "The cursor is not valid", Retry.MENDED,
          "Cursors last 24 hours and belong to the filters they came with. Start again without one."),
    Entry("invalid-idempotency-key", 400, "The Idempotency-Key is not valid", Retry.MENDED,
          "1 to 255 printable ASCII characters."),
    Entry("idempotency-key-required", 400, "An Idempotency-Key is required", Retry.MENDED,
          "Batches and campaigns must name one, so that a repeat is never a second send."),
    Entry("unauthenticated", 401, "The credentials are not accepted", Retry.MENDED,
          "Unknown key, wrong secret, wrong signature, revoked key or none at all: the answer is the same. Send "
          "`Authorization: Basic` or the four headers of a signed request, not both."),
    Entry("timestamp-out-of-range", 401, "The timestamp is too far from now", Retry.MENDED,
          "`X-Timestamp` is in Unix seconds and may be 300 seconds off. Check the clock, then sign again."),
    Entry("nonce-reused", 401, "The nonce was used before", Retry.MENDED,
          "Each signed request needs a new `X-Nonce`; a retry too. Keep its `Idempotency-Key`."),
    Entry("scope-missing", 403, "The key lacks the scope", Retry.NEVER,
          "`scope` names what is missing. Scopes are granted in the admin site.", ("scope",)),
    Entry("category-not-allowed", 403, "This client may not send this category", Retry.NEVER,
          "Categories are granted per client in the admin site."),
    Entry("channel-not-allowed", 403, "This client may not use this channel", Retry.NEVER,
          "Channels are granted per client in the admin site."),
    Entry("lane-not-allowed", 403, "This client may not use this lane", Retry.NEVER,
          "`critical` and `bulk` are granted per client in the admin site."),
    Entry("inline-content-not-allowed", 403, "This client may send templates only", Retry.NEVER,
          "Inline `content` is granted per client in the admin site."),
    Entry("sender-not-allowed", 403, "This client may not use this sender", Retry.NEVER,
          "Senders are granted per client in the admin site."),
    Entry("ip-not-allowed", 403, "This address may not use the key", Retry.NEVER,
          "The client is limited to IP ranges, and the request came from elsewhere."),
    Entry("client-suspended", 403, "The client is switched off", Retry.NEVER,
          "Somebody switched this client off in the admin site."),
    Entry("suppression-protected", 403, "This suppression cannot be lifted here", Retry.NEVER,
          "A complaint or a STOP is lifted by a person in the admin site, or by the recipient's START."),
    Entry("not-found", 404, "There is no such thing", Retry.NEVER,
          "Nothing of yours has this address. What belongs to another client or mode is not found either."),
    Entry("method-not-allowed", 405, "This address does not take that method", Retry.NEVER,
          "`Allow` names those it takes."),
    Entry("not-acceptable", 406, "The answer cannot be given in that form", Retry.NEVER,
          "Answers are `application/json`; errors are `application/problem+json`."),
    Entry("event-id-reused", 409, "The event id names another event", Retry.NEVER,
          "`original_id` is the notification that has this `event_id`; its content differs from this request's.",
          ("original_id",)),
    Entry("request-in-progress", 409, "The first request with this key is still running", Retry.LATER,
          "A repeat gets the stored answer as soon as the first one is done."),
    Entry("invalid-state", 409, "Its state does not allow that", Retry.NEVER,
          "`state` is the state it is in.", ("state",)),
    Entry("version-conflict", 409, "Somebody else was first", Retry.MENDED,
          "What is published is not what you expected. Read it again, then decide."),
    Entry("body-too-large", 413, "The body is too large", Retry.NEVER,
          "`limit` is the largest size in bytes.", ("limit",)),
    Entry("unsupported-media-type", 415, "The body must be plain JSON", Retry.NEVER,
          "Send `Content-Type: application/json` in UTF-8, without `Content-Encoding`."),
    Entry("validation-failed", 422, "Some fields are not valid", Retry.MENDED,
          "`errors` lists up to 100 problems, each with a JSON Pointer, or `?name` for a query parameter."),
    Entry("idempotency-key-reused", 422, "The Idempotency-Key was used for another request", Retry.MENDED,
          "A repeat must have the same method, path and body. A new request needs a new key."),
    Entry("rate-limited", 429, "Too many requests", Retry.LATER,
          "`policy` names the limit; the RateLimit headers say how much is left.", ("policy",)),
    Entry("quota-exceeded", 429, "The daily quota is used up", Retry.LATER,
          "`policy` names the quota. It fills up again evenly over the day.", ("policy",)),
    Entry("internal-error", 500, "Something broke on our side", Retry.SAME_KEY,
          "It is logged under `request_id`."),
    Entry("unavailable", 503, "The service cannot accept anything right now", Retry.LATER,
          "Nothing was accepted."),
    Entry("overloaded", 503, "Too much work at once", Retry.LATER,
          "Nothing was accepted."),
    Entry("nonce-store-unavailable", 503, "Signed requests cannot be checked right now", Retry.LATER,
          "A nonce cannot be checked, so the request is not accepted. Basic authentication goes on working."),
)  # fmt: skip


def markdown() -> str:
    """`docs/errors.md`, whole."""
    lines = [
        "# Error codes",
        "",
        "Every 4xx and 5xx answer under `/v1` is `application/problem+json` (RFC 9457). `code` is one of these, and",
        "`type` is the address of its page. `errors[]` has at most 100 entries of `pointer`, `code` and `detail`.",
        "This page is generated: `python manage.py shell -c 'from apps.rest.catalogue import markdown; "
        'print(markdown(), end="")\' > docs/errors.md`',
        "",
        "| Status | `code` | Meaning | Repeat? | Extra members |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {entry.status} | `{entry.code}` | {entry.title}. {entry.text} | {entry.retry} | "
        f"{', '.join(f'`{member}`' for member in entry.members)} |"
        for entry in CATALOGUE.values()
    ]
    lines += ["", "## `errors[].code`", "", ", ".join(f"`{code}`" for code in FieldCode), ""]
    return "\n".join(lines)
