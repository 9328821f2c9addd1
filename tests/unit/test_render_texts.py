"""SMS encodings and segments, text from HTML, and the checks of sources."""

from __future__ import annotations

import time
from typing import Any

import pytest

from notifier.stages.sources import check_part, compile_check
from notifier.stages.texts import GSM7, GSM7_EXTENSION, clean_sms, html_to_text, sms_segments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("gsm7", 1)),
        ("a" * 160, ("gsm7", 1)),
        ("a" * 161, ("gsm7", 2)),
        ("a" * 306, ("gsm7", 2)),
        ("a" * 307, ("gsm7", 3)),
        ("€" * 80, ("gsm7", 1)),
        ("€" * 81, ("gsm7", 2)),
        ("a" * 152 + "€" + "a" * 152, ("gsm7", 3)),  # the € does not fit the first segment's last septet
        ("a" * 151 + "€" + "a" * 153, ("gsm7", 2)),
        ("Ñ à ø Ω ß", ("gsm7", 1)),
        ("ú", ("ucs2", 1)),
        ("ç", ("ucs2", 1)),
        ("`", ("ucs2", 1)),
        ("한" * 70, ("ucs2", 1)),
        ("한" * 71, ("ucs2", 2)),
        ("한" * 134, ("ucs2", 2)),
        ("한" * 135, ("ucs2", 3)),
        ("😀" * 35, ("ucs2", 1)),
        ("😀" * 36, ("ucs2", 2)),
        ("한" * 66 + "😀" + "한" * 66, ("ucs2", 3)),  # a surrogate pair is not split
        ("a" * 159 + "😀", ("ucs2", 3)),
    ],
)
def test_segments(text: str, expected: tuple[str, int]) -> None:
    assert sms_segments(text) == expected


def test_the_alphabet_has_its_128_places() -> None:
    assert len(GSM7) == 127  # all but the escape
    assert len(GSM7_EXTENSION) == 10
    assert not GSM7 & GSM7_EXTENSION


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  plain \n", "plain"),
        ("e\u0301", "é"),
        ("a\u200bb\ufeffc\u2060d", "abcd"),
        ("pay\u202epal\u2066x\u2069", "paypalx"),
        ("a\u200db", "ab"),
        ("👩\u200d👧", "👩\u200d👧"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("one\r\ntwo\rthree\u2028four", "one\ntwo\nthree\nfour"),
        ("a\x07\x1bb", "ab"),
        ("tab\there", "tab\there"),
        ("soft\u00adhyphen", "softhyphen"),
        ("\u200b\u200d", ""),
    ],
)
def test_an_sms_carries_nothing_invisible(text: str, cleaned: str) -> None:
    assert clean_sms(text) == cleaned


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<!doctype html><title>T</title><p>Hi</p>", "Hi"),
        ("<style>p{}</style><script>alert(1)</script>x", "x"),
        ("<STYLE>a</STYLE>x<!-- <b> -->y", "xy"),
        ("a<br>b<br/>c", "a\nb\nc"),
        ("<p>a</p><p>b</p>", "a\n\nb"),
        ("<ul><li>a</li><li>b</li></ul>", "- a\n- b"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a b\n\nc"),
        ('<a href="https://e.com/?a=1&amp;b=2">Go</a>', "Go (https://e.com/?a=1&b=2)"),
        ("<a href='#top'>Top</a> <a>no</a> <a href='mailto:x@y.z'>mail</a>", "Top no mail"),
        ('<div style="display:none">secret</div>x', "x"),
        ('<div style="DISPLAY : NONE">secret</div>x', "x"),
        ("3 &lt; 4 &amp; 5 &#62; 4", "3 < 4 & 5 > 4"),
        ("3 < 4", "3 < 4"),
        ("a\n   b\tc", "a b c"),
        ("<img src=x>x<p", "x<p"),
        ("", ""),
    ],
)
def test_html_becomes_text(html: str, text: str) -> None:
    assert html_to_text(html) == text


@pytest.mark.parametrize(
    "piece",
    ["<", "<!--", "<a ", "<style>", "<div style='display:none'>", "<a href=", "</", "<a href='x'>", "&", "<td>"],
)
def test_html_to_text_is_linear(piece: str) -> None:
    source = piece * (300_000 // len(piece)) + ">"
    began = time.thread_time()
    html_to_text(source)
    assert time.thread_time() - began < 1.5


def found(channels: Any, default_locale: str = "en") -> list[tuple[str, str]]:
    return [("/".join(problem.path), problem.code) for problem in compile_check(channels, default_locale)]


@pytest.mark.parametrize(
    ("channels", "problems"),
    [
        ({"sms": {"en": {"text": "x"}}}, []),
        ({"sms": {"de": {"text": "x"}, "en": {"text": "y"}}}, []),
        ([], [("", "wrong_type")]),
        ({}, [("", "no_content")]),
        ({"sms": []}, [("sms", "wrong_type")]),
        ({"sms": {"en": "x"}}, [("sms/en", "wrong_type")]),
        ({"sms": {"en": {"text": "x"}, "EN": {"text": "y"}}}, [("sms/EN", "conflict")]),
        ({"sms": {"en": {"text": " "}}}, [("sms/en/text", "required")]),
        ({"sms": {f"x{chr(97 + n // 26)}{chr(97 + n % 26)}": {"text": "x"} for n in range(51)}}, [("sms", "too_many")]),
        ({"email": {"en": {"subject": "a\x00", "text": "b"}}},
         [("email/en/subject", "invalid_template"), ("email/en/subject", "invalid_template")]),
        ({"email": {"en": {"subject": "a", "html": "{% if a %}<b {% endif %}>x"}}}, [("email/en/text", "required")]),
        ({"push": {"en": {"title": "{{ a | nope }}", "body": "{% if %}"}}},
         [("push/en/title", "invalid_template"), ("push/en/body", "invalid_template")]),
    ],
)  # fmt: skip
def test_sources_are_checked(channels: Any, problems: list[tuple[str, str]]) -> None:
    assert found(channels) == problems


def test_the_default_locale_must_have_a_text_or_a_more_general_one() -> None:
    assert found({"sms": {"de": {"text": "x"}}}, "de-AT") == []
    assert found({"sms": {"de-AT": {"text": "x"}}}, "de") == [("sms/de", "required")]
    assert found({"sms": {"de": {"text": "x"}}}, "no such") == [("default_locale", "invalid_locale")]


def test_a_part_has_64_kib_and_what_a_request_brings_more() -> None:
    assert [problem.code for problem in check_part("sms", {"text": "é" * 32_769})] == ["too_long"]
    assert check_part("sms", {"text": "é" * 32_769}, limit_bytes=512 * 1024) == []
