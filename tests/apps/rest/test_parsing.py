"""Bodies that hurt: each is refused in the error format, at its place, in time."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any

import pytest

from apps.rest.parsing import parse_json
from apps.rest.problems import Problem
from tests.apps.rest.callers import Api, assert_problem, pointers


def refusal(body: bytes, **options: int) -> tuple[str, list[str]]:
    with pytest.raises(Problem) as caught:
        parse_json(body, **options)
    return caught.value.code, [error.pointer for error in caught.value.errors]


@pytest.mark.parametrize(
    ("body", "code", "where"),
    [
        (b"", "invalid-json", []),
        (b"{", "invalid-json", []),
        (b"[1,]", "invalid-json", []),
        (b"{'a':1}", "invalid-json", []),
        (b"[01]", "invalid-json", []),
        (b"1 2", "invalid-json", []),
        (b"\xef\xbb\xbf{}", "invalid-json", []),
        (b'["\x01"]', "invalid-json", []),
        (b'["\\x"]', "invalid-json", []),
        (b'{"a":1,"a":2,', "invalid-json", []),
        (b'{"a":1,"a":2}', "duplicate-key", ["/a"]),
        (b'{"a":[{"b/c~":1,"b/c~":2}]}', "duplicate-key", ["/a/0/b~1c~0"]),
        (b'{"a":1,"\\u0061":2}', "duplicate-key", ["/a"]),
        (b'{"":{"":1,"":2}}', "duplicate-key", ["//"]),
        (b"NaN", "invalid-number", [""]),
        (b'{"x":[1,NaN]}', "invalid-number", ["/x/1"]),
        (b"[-Infinity]", "invalid-number", ["/0"]),
        (b"[1e999]", "invalid-number", ["/0"]),
        (b"[-1e999]", "invalid-number", ["/0"]),
        (b"[" + b"9" * 400 + b".5]", "invalid-number", ["/0"]),
        (b'{"n":' + b"9" * 5000 + b"}", "invalid-number", ["/n"]),
        (b"[-" + b"1" * 5000 + b"]", "invalid-number", ["/0"]),
        (b"[9007199254740993]", "invalid-number", ["/0"]),
        (b"[-9007199254740993]", "invalid-number", ["/0"]),
        (b"[99999999999999999]", "invalid-number", ["/0"]),
        (b"\xff", "invalid-text", []),
        (b'["\xed\xa0\x80"]', "invalid-text", []),
        (b'["\xc0\x80"]', "invalid-text", []),
        (b'["a\x00b"]', "invalid-text", []),
        (b'{"a":["ok","\\u0000"]}', "invalid-text", ["/a/1"]),
        (b'{"a":{"k\\u0000":1}}', "invalid-text", ["/a/k\ufffd"]),
        (b'["\\ud800"]', "invalid-text", ["/0"]),
        (b'["\\udc00\\ud800"]', "invalid-text", ["/0"]),
        (b'{"\\uDBFF":1}', "invalid-text", ["/?"]),
        (b"[" * 21 + b"]" * 21, "too-deep", []),
        (b'{"a":' * 21 + b"1" + b"}" * 21, "too-deep", []),
        (b"[" * 100_000, "too-deep", []),
        (b"[" * 100_000 + b"]" * 100_000, "too-deep", []),
        (b'{"a":' * 100_000, "too-deep", []),
        (b"[" * 30 + b"NaN" + b"]" * 30, "too-deep", []),
    ],
)
def test_what_is_no_strict_json_is_refused_where_it_is_wrong(body: bytes, code: str, where: list[str]) -> None:
    assert refusal(body) == (code, where)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a":[1,-2,3.5,true,false,null,"x"]}', {"a": [1, -2, 3.5, True, False, None, "x"]}),
        (b"[9007199254740992,-9007199254740992]", [2**53, -(2**53)]),
        (b'["12345678901234567890", 1]', ["12345678901234567890", 1]),
        (b"[1e3,-0,1e-999]", [1000.0, 0, 0.0]),
        (b'["\\ud83d\\ude00 \\u00e9"]', ["\U0001f600 é"]),
        ('["👩‍👩‍👧 שלום"]'.encode(), ["👩‍👩‍👧 שלום"]),
        (b'["\\\\u0000"]', ["\\u0000"]),
        (b"[" * 20 + b"]" * 20, json.loads("[" * 20 + "]" * 20)),
        (b" \n\t[] ", []),
        (b'"x"', "x"),
    ],
)
def test_what_is_json_comes_through_unchanged(body: bytes, value: Any) -> None:
    parsed = parse_json(body)
    assert parsed == value
    assert [type(a) for a in parsed] == [type(a) for a in value]


def test_a_body_of_the_limit_passes_and_one_byte_more_does_not() -> None:
    body = b'"' + b"x" * 98 + b'"'
    assert parse_json(body, limit_bytes=100) == "x" * 98
    assert refusal(body, limit_bytes=99) == ("body-too-large", [])


def batch(size: int) -> bytes:
    items = []
    while len(items) * 900 < size:
        number = len(items)
        items.append(
            {
                "event_id": f"inv-{number}",
                "template": "invoice",
                "to": [{"user_id": f"u_{number}"}, {"email": f"bob{number}@example.com", "locale": "en"}],
                "data": {"order": {"id": f"A-{number}", "total": 12.5, "n": 3, "text": "x" * 600}},
                "routing": {"strategy": "first", "order": ["push", "email"]},
                "metadata": {"team": "checkout"},
            }
        )
    return json.dumps({"items": items}).encode()


def cpu_ms(body: bytes) -> float:
    spent = []
    for _ in range(7):
        start = time.process_time()
        parse_json(body, limit_bytes=2 * 2**20)
        spent.append((time.process_time() - start) * 1000)
    return min(spent)


def test_a_batch_of_a_mebibyte_is_parsed_in_60_ms() -> None:
    assert cpu_ms(batch(2**20)) < 60  # 10 on an idle core


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"1," * 500_000 + b"1]",
        b"[" + b"1234567890123456," * 60_000 + b"1]",
        b"[" + b"{}," * 340_000 + b"1]",
        b'["' + b"\\u0041" * 170_000 + b'"]',
        b'["' + b"\\ud83d\\ude00" * 85_000 + b'"]',
        b"{" + b",".join(b'"k%d":1' % n for n in range(90_000)) + b"}",
        b"{" + b",".join(b'"k%d":1' % n for n in range(90_000)) + b',"k0":1}',
        b"[" + b"1," * 400_000 + b"NaN]",
        b"[" * 500_000,
    ],
    ids=lambda body: body[:12].decode(),
)
def test_no_body_of_a_mebibyte_takes_a_second(body: bytes) -> None:
    start = time.process_time()
    with contextlib.suppress(Problem):
        parse_json(body)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        (b"NaN", "invalid-number", "NaN is out of range"),
        (b"1e999", "invalid-number", "1e999 is out of range"),
        (b"12345678901234567890", "invalid-number", "12345678901234567890 is out of range"),
        (b'{"a":1,"b/\\u00e9":1,"b/\\u00e9":2}', "duplicate-key", 'an object names "b/\\u00e9" twice'),
        (b'{"\\ud800":1,"\\ud800":2}', "duplicate-key", 'an object names "\\ud800" twice'),
        (b'"ab\\u0000"', "invalid-text", "at line 2, column 4"),
        (b'"\\n\\ud83d\\ude00\\ude00"', "invalid-text", "at line 2, column 16"),
    ],
)
def test_a_fault_in_a_large_body_is_named_without_reading_the_body_again(fault: bytes, code: str, says: str) -> None:
    large = b'["' + b"x" * 2**20 + b'",\n' + fault + b"]"
    assert refusal(b"[" + fault + b"]")[1], "a small one has a pointer"
    with pytest.raises(Problem) as caught:
        parse_json(large, limit_bytes=2 * 2**20)
    assert (caught.value.code, caught.value.errors) == (code, ())
    assert says in caught.value.detail


@pytest.mark.parametrize(
    "text",
    [
        "\U0001f600",
        "\\",
        "\\u0000",
        "\\\\",
        "\\ud800",
        '"\n\U0001f600"',
        "é\u2028\ud7ff\ue000",
        "\U0001f600" * 3 + "\\u0000",
    ],
)
def test_text_that_only_looks_like_a_bad_escape_comes_through(text: str) -> None:
    for ascii in (True, False):
        assert parse_json(json.dumps([text, {text: 1}], ensure_ascii=ascii).encode()) == [text, {text: 1}]


def test_a_small_recursion_limit_is_no_crash() -> None:
    before = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(300)
        assert refusal(b"[" * 100_000)[0] == "too-deep"
    finally:
        sys.setrecursionlimit(before)


# --- The same over HTTP -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"[" * 100_000, 400, "too-deep"),
        (b'{"attributes":{"k\\u0000":1}}', 400, "invalid-text"),
        (b'{"attributes":{"k":"\\ud800"}}', 400, "invalid-text"),
        (b'{"attributes":{"n":' + b"9" * 5000 + b"}}", 400, "invalid-number"),
        (b'{"attributes":{"n":NaN}}', 400, "invalid-number"),
        (b'{"locale":"en","locale":"de"}', 400, "duplicate-key"),
        (b"\xff\xfe{}", 400, "invalid-text"),
        (b"", 400, "invalid-json"),
        (b" ", 400, "invalid-json"),
        (b"null", 422, "validation-failed"),
        (b'"x"', 422, "validation-failed"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else None,
)
def test_a_body_made_to_hurt_is_answered_in_the_error_format(api: Api, body: bytes, status: int, code: str) -> None:
    assert_problem(api("PUT", "/v1/users/u_1", body), status, code)
    assert_problem(api.get("/v1/users/u_1"), 404, "not-found")


def test_too_large_a_body_names_the_limit(api: Api) -> None:
    for size in (2**20 + 1, 20 * 2**20):
        body = assert_problem(api("PUT", "/v1/users/u_1", b" " * size), 413, "body-too-large")
        assert body["limit"] == 2**20
    assert (
        assert_problem(api("POST", "/v1/users/bulk", b" " * (10 * 2**20 + 1)), 413, "body-too-large")["limit"]
        == 10 * 2**20
    )


def test_bulk_takes_more_than_a_mebibyte(api: Api) -> None:
    users = [{"id": f"u_{n}", "attributes": {"text": "x" * 15_000}} for n in range(100)]
    assert api.post("/v1/users/bulk", {"users": users}).json()["created"] == 100


@pytest.mark.parametrize(
    ("content_type", "headers"),
    [
        ("text/plain", {}),
        ("application/x-www-form-urlencoded", {}),
        ("multipart/form-data; boundary=x", {}),
        ("", {}),
        ("application/json; charset=latin-1", {}),
        ("application/json", {"Content-Encoding": "gzip"}),
        ("application/json", {"Content-Encoding": "br, gzip"}),
    ],
)
def test_only_plain_json_is_taken(api: Api, content_type: str, headers: dict[str, str]) -> None:
    answer = api.put("/v1/users/u_1", {}, content_type=content_type, headers=headers)
    assert_problem(answer, 415, "unsupported-media-type")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", 'application/json;charset="UTF-8"'])
def test_utf_8_may_be_named(api: Api, content_type: str) -> None:
    assert api.put("/v1/users/u_1", {}, content_type=content_type).status_code == 201


@pytest.mark.parametrize(
    "path",
    ["/v1/users?email=%00", "/v1/users?%00=1", "/v1/users?email=%FF", "/v1/users?%ED%A0%80=1", "/v1/users?a=%ED%A0%80"],
)
def test_a_query_that_no_database_could_store_is_refused(api: Api, path: str) -> None:
    body = assert_problem(api.get(path), 400, "invalid-text")
    assert body["errors"][0]["pointer"].startswith("?")


@pytest.mark.parametrize("path", ["/v1/users/%00", "/v1/users/a%00b/devices", "/v1/users/%FF", "/v1/users/%ED%A0%80"])
def test_a_path_that_no_database_could_store_is_refused(api: Api, path: str) -> None:
    assert_problem(api.get(path), 400, "invalid-text")


def test_a_header_that_no_database_could_store_is_refused(api: Api) -> None:
    assert_problem(api.get("/v1/users", headers={"X-Anything": "a\0b"}), 400, "invalid-text")


def test_unknown_query_parameters_are_errors_everywhere(api: Api) -> None:
    assert pointers(assert_problem(api.get("/v1/users?a=1&b=2"), 422, "validation-failed")) == [
        ("?a", "unknown_field"),
        ("?b", "unknown_field"),
    ]
    assert_problem(api.put("/v1/users/u_1?dry_run=1", {}), 422, "validation-failed")


@pytest.mark.parametrize(
    ("query", "code"),
    [("limit=0", "out_of_range"), ("limit=101", "out_of_range"), ("limit=x", "wrong_type"), ("limit=", "wrong_type"),
     ("limit=1&limit=2", "conflict"), ("limit=" + "9" * 5000, "wrong_type"), ("email=x", "invalid_email")],
)  # fmt: skip
def test_a_wrong_query_parameter_is_named(api: Api, query: str, code: str) -> None:
    body = assert_problem(api.get(f"/v1/users?{query}"), 422, "validation-failed")
    assert pointers(body) == [("?" + query.partition("=")[0], code)]
