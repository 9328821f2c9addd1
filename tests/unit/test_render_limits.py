"""No template and no data makes a render or a parse expensive."""

from __future__ import annotations

import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from notifier.stages.liquid import CPU_LIMIT_S, Part, Refused, TemplateError

BIG = "x" * 250_000
FEW_S = 4 * CPU_LIMIT_S  # the limit is looked at between steps, and one step may be large


@pytest.fixture(autouse=True)
def _no_test_hangs() -> Iterator[None]:
    signal.alarm(60)
    yield
    signal.alarm(0)


def cost_s(work: Callable[[], Any]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def refusal(source: str, data: dict[str, Any] | None = None, *, html: bool = False) -> str:
    part = Part(source, html=html)
    with pytest.raises(Refused) as caught:
        part.render(data or {})
    return str(caught.value)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{% for i in (1..100000000) %}{% endfor %}", "loops"),
        ("{% for i in (1..9999) %}{% for j in (1..9999) %}{% endfor %}{% endfor %}", "loops"),
        ("{% for i in (1..6000) %}{% endfor %}{% for i in (1..6000) %}{% endfor %}", "loops"),
        ("{% for i in (1..9999) %}" + "{% if true %}{% endif %}" * 900 + "{% endfor %}", "too long"),
        ("{% assign s = 'aaaaaaaaaa' %}" + "{% assign s = s | append: s %}" * 100, "longer than"),
        ("{% assign s = big %}{% for i in (1..500) %}{% assign t = s | append: '1' %}{% endfor %}", "assigned"),
        ("{% capture s %}{{ big }}{{ big }}{{ big }}{% endcapture %}{{ s | size }}", "limit"),
        ("{{ big | split: '' | join: big }}", "items"),
        ("{{ list | join: big }}", "longer than"),
        ("{{ big | replace: 'x', big }}", "longer than"),
        ("{{ big | replace: '', big }}", "longer than"),
        ("{{ big | newline_to_br | append: big }}", "longer than"),
        ("{% assign n = 9 %}" + "{% assign n = n | times: n %}" * 60 + "{{ n }}", "number is too large"),
        ("{{ " + "9" * 1900 + " | times: 2 }}", "number is too large"),
        ("{{ big }}{{ big }}{{ big }}", "larger than"),
        ("{% for i in (1..9999) %}{{ line }}{% endfor %}", "larger than"),
        ("{{ many | sort }}", "items"),
    ],
)
def test_a_render_is_stopped(source: str, says: str) -> None:
    data = {"big": BIG, "list": ["a"] * 100, "line": "y" * 200, "many": [1] * 20_000}
    tracemalloc.start()
    try:
        assert cost_s(lambda: _check(source, says, data)) < FEW_S
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024 * 1024
    finally:
        tracemalloc.stop()


def _check(source: str, says: str, data: dict[str, Any]) -> None:
    assert says in refusal(source, data)


@pytest.mark.parametrize(
    "source",
    [
        "{{ big | upcase | size }}" * 1900,
        "{{ list | uniq | size }}" * 200,
        "{{ deep }}" * 500,
        "{{ list | map: 'a' | compact | sort | reverse | size }}" * 300,
    ],
)
def test_a_render_that_passes_is_not_long(source: str) -> None:
    data = {"big": BIG, "list": [{"a": n} for n in range(9000)], "deep": [[[["x"] * 50]]]}
    part = Part(source)

    def run() -> None:
        with suppress(Refused):
            part.render(data)

    assert cost_s(run) < FEW_S


@pytest.mark.parametrize(
    "source",
    [
        "{{" + " " * 60_000 + "}}",
        "{{" + " " * 60_000,
        "{{" * 30_000,
        "{%" * 30_000,
        "{% raw %}" * 7_000,
        "{% doc %}" * 7_000,
        "{{ a }}" * 9_000,
        "{% if a %}" * 6_000,
        "{% if a" + " or a" * 10_000 + " %}x{% endif %}",
        "{{ a" + "[b" * 15_000 + "]" * 15_000 + " }}",
        "{{ a" + " | upcase" * 7_000 + " }}",
        "{% comment %}" * 5_000,
        "{" * 64_000,
        "{% case a %}" + "{% when 1 %}" * 5_000 + "{% endcase %}",
        "{{ '" + "'" * 60_000 + " }}",
        "{%- " + "\n" * 60_000 + " if a -%}{% endif %}",
    ],
    ids=lambda source: source[:12],
)
def test_no_source_is_expensive_to_parse(source: str) -> None:
    def run() -> None:
        with suppress(TemplateError):
            Part(source)

    assert cost_s(run) < 1.5


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("a\n{{ b", "line 2: "),
        ("{% include 'x' %}", "unknown tag 'include'"),
        ("{% render 'x' %}", "unknown tag 'render'"),
        ("{% tablerow x in y %}{% endtablerow %}", "unknown tag"),
        ("\n\n{{ a | safe }}", "line 3: unknown filter 'safe'"),
        ("{{ a | escapejs }}", "unknown filter"),
        ("{% for i in x %}\n{{ i | strip_html }}{% endfor %}", "line 2: unknown filter"),
        ("x\n{% if a %}\n{% endfor %}", "line 3: "),
        ("x\n{% if a %}\n", "line 2: "),
        ("{% assign = 1 %}", "line 1: "),
        ("{{ a b }}", "line 1: "),
        ("{% if a %}" * 40 + "{% endif %}" * 40, "nesting"),
    ],
)
def test_a_broken_source_is_told_with_its_line(source: str, says: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Part(source)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "name", ["now", "today", "env", "template", "globals", "self", "__class__", "request", "settings"]
)
def test_a_template_reaches_nothing_but_its_data(name: str) -> None:
    assert "undefined" in refusal(f"{{{{ {name} }}}}")
    for path in ("s.__class__", "s.upper", "d.items", "d.__len__", "l.append", "n.real"):
        assert "undefined" in refusal(f"{{{{ {path} }}}}", {"s": "x", "d": {"a": 1}, "l": [1], "n": 1})


def test_an_explanation_does_not_quote_the_data() -> None:
    data = {"mail": "ada@example.com", "by": {}}
    for source in (
        "{{ by[mail] }}",
        "{{ mail | divided_by: 0 }}",
        "{{ mail | truncate: mail }}",
        "{{ 'x' | slice: mail }}",
    ):
        assert "ada" not in refusal(source, data)


@pytest.mark.parametrize(
    ("value", "pattern", "text"),
    [
        ("2026-11-25", "%-d %B %Y", "25 November 2026"),
        ("2026-01-05T09:07:00Z", "%-m/%-d %-H:%M", "1/5 9:07"),
        ("2026-01-05T09:07:00+09:00", "%H:%M", "09:07"),
        (1_795_379_460, "%F %T", "2026-11-22 20:31:00"),
        ("2026-11-25", "%Y년 %-m월 %-d일", "2026년 11월 25일"),
        ("tomorrow", "%F", "tomorrow"),
        ("", "%F", ""),
        ("2026-11-25", "%999999999Y", "%999999999Y"),
        (10**18, "%F", str(10**18)),
        (True, "%F", "True"),
    ],
)
def test_dates(value: Any, pattern: str, text: str) -> None:
    assert Part("{{ v | date: p }}").render({"v": value, "p": pattern}) == text


def test_a_part_without_variables_is_rendered_once() -> None:
    part = Part("{% for i in (1..3) %}{{ i }}{% cycle 'a', 'b' %}{% endfor %}{{ 'x' | upcase }}")
    assert part.render({}) == part.render({"i": 9}) == "1a2b3aX"
    assert part.render({}) is part.render({})


def test_raw_and_white_space_control_work() -> None:
    assert Part("{% raw %}{{ x }}{% endraw %} a {{- 'b' -}} c").render({}) == "{{ x }} abc"


def test_names_assigned_hide_the_datas() -> None:
    assert Part("{{ a }}{% assign a = 'x' %}{{ a }}").render({"a": 1}) == "1x"
    assert Part("{% for a in b %}{{ a }}{% endfor %}{{ a }}").render({"a": 1, "b": [2, 3]}) == "231"
