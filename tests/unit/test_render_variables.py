"""What a text needs is asked for before it is sent: no more, and no less, than rendering would miss."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notifier.stages.liquid import Part, Refused
from notifier.stages.variables import needs_of


def missing(source: str, data: dict[str, Any] | None = None) -> list[tuple[str | int, ...]]:
    return needs_of(Part(source)).missing(data or {})


@pytest.mark.parametrize(
    ("source", "data", "paths"),
    [
        ("{{ a.b }}", {}, [("a", "b")]),
        ("{{ a.b }}", {"a": {"b": None}}, []),
        ("{{ a.b }}", {"a": "text"}, [("a", "b")]),
        ("{{ b }}{{ a }}{{ b }}", {}, [("b",), ("a",)]),
        ("{{ a | upcase }}", {}, [("a",)]),
        ("{{ a | default: b }}", {}, []),
        ("{{ a | default: 'x' | upcase }}", {}, []),
        ("{{ a | upcase | default: 'x' }}", {}, [("a",)]),
        ("{{ 'x' | append: a }}", {}, [("a",)]),
        ("{% assign x = a.b %}{{ x }}", {}, [("a", "b")]),
        ("{% capture x %}{{ a }}{% endcapture %}{{ x }}", {}, [("a",)]),
        ("{% echo a %}{% cycle b, c %}", {}, [("a",), ("b",), ("c",)]),
        ("{% comment %}{{ a }}{% endcomment %}{% raw %}{{ b }}{% endraw %}", {}, []),
        ("{% if a %}{{ a.b }}{% endif %}", {}, []),
        ("{% if a %}{{ a.b }}{% endif %}", {"a": {}}, [("a", "b")]),
        ("{% if a == 1 %}{{ b }}{% elsif a == 2 %}{{ c }}{% else %}{{ d }}{% endif %}", {"a": 2}, [("c",)]),
        ("{% if a == 1 %}{{ b }}{% elsif a == 2 %}{{ c }}{% else %}{{ d }}{% endif %}", {}, [("d",)]),
        ("{% unless a %}{{ b }}{% else %}{{ c }}{% endunless %}", {"a": True}, [("c",)]),
        ("{% case a %}{% when 1, 2 %}{{ b }}{% when 3 %}{{ c }}{% else %}{{ d }}{% endcase %}", {"a": 2}, [("b",)]),
        ("{% case a %}{% when 1 %}{{ b }}{% else %}{{ d }}{% endcase %}", {}, [("d",)]),
        ("{% if a > 1 %}{{ b }}{% endif %}", {"a": "text"}, []),
        ("{% for i in a %}{{ i }}{% endfor %}", {}, [("a",)]),
        ("{% for i in a %}{{ i.b }}{{ c }}{% else %}{{ d }}{% endfor %}", {"a": []}, [("d",)]),
        ("{% for i in a %}{{ i.b }}{{ forloop.index }}{% endfor %}", {"a": [{"b": 1}, {}]}, [("a", 1, "b")]),
        ("{% for i in a.b %}{% for j in i.c %}{{ j.d }}{% endfor %}{% endfor %}", {"a": {"b": [{"c": [{}]}]}},
         [("a", "b", 0, "c", 0, "d")]),
        ("{% for i in a %}{% if i.b %}{{ i.c }}{% endif %}{% endfor %}", {"a": [{}, {"b": 1}]}, [("a", 1, "c")]),
        ("{% for i in (1..n) %}{{ i }}{% endfor %}", {}, [("n",)]),
        ("{% for i in a limit: n %}{{ i }}{% endfor %}", {"a": [1]}, [("n",)]),
        ("{{ a[0].b }}{{ a.first.c }}{{ a.last.c }}{{ a.size }}", {"a": [{"b": 1, "c": 2}]}, []),
        ("{{ a[1] }}", {"a": [1]}, [("a", 1)]),
        ("{{ a[b].c }}", {"a": {}}, [("b",)]),
        ("{% assign x = 1 %}{% if x %}{{ a }}{% endif %}", {}, []),
        ("{% assign x = 1 %}{% case x %}{% when 2 %}{% else %}{{ a }}{% endcase %}", {}, []),
    ],
)  # fmt: skip
def test_what_is_asked_for(source: str, data: dict[str, Any], paths: list[tuple[str | int, ...]]) -> None:
    assert missing(source, data) == paths


PIECES = (
    "{{ a }}", "{{ a.b }}", "{{ b.c | upcase }}", "{{ b | default: 'x' }}", "{% if a %}{{ a.b }}{% endif %}",
    "{% if a.b == 1 %}{{ b }}{% else %}{{ b.c }}{% endif %}", "{% unless b %}{{ a }}{% endunless %}",
    "{% for i in l %}{{ i.b }}{% else %}{{ a }}{% endfor %}",
    "{% for i in l %}{% if i.b %}{{ i.c }}{% endif %}{% endfor %}",
    "{% case a %}{% when 1 %}{{ b }}{% else %}{{ a.b }}{% endcase %}", "{{ l.first.b }}", "{{ l[1].c }}",
)  # fmt: skip
VALUES = st.none() | st.just(1) | st.just("t") | st.dictionaries(st.sampled_from(["b", "c"]), st.just(1), max_size=2)


@settings(max_examples=500, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=4),
    data=st.fixed_dictionaries({}, optional={"a": VALUES, "b": VALUES, "l": st.lists(VALUES, max_size=3)}),
)
def test_asking_agrees_with_rendering(pieces: list[str], data: dict[str, Any]) -> None:
    part = Part("x" + "".join(pieces))
    try:
        part.render(data)
        fails = False
    except Refused as error:
        fails = "undefined" in str(error) or "out of range" in str(error)
    assert bool(needs_of(part).missing(data)) is fails


def test_asking_for_the_variables_of_a_usual_text_is_quick() -> None:
    source = "".join(f"{{{{ order.f{n} }}}}" for n in range(15)) + "{% if order.note %}{{ order.note }}{% endif %}"
    needs, data = needs_of(Part(source)), {"order": {f"f{n}": n for n in range(15)}}
    best = min(_cost_us(lambda: needs.missing(data)) for _ in range(20))
    assert best < 50


def _cost_us(work: Any) -> float:
    began = time.thread_time()
    for _ in range(100):
        work()
    return (time.thread_time() - began) * 1e4


def test_a_long_list_is_looked_at_for_a_while_only() -> None:
    source = "{% for i in a %}{{ i.b }}{% endfor %}"
    assert missing(source, {"a": [{"b": 1}] * 99 + [{}]}) == [("a", 99, "b")]
    assert missing(source, {"a": [{"b": 1}] * 100 + [{}]}) == []
