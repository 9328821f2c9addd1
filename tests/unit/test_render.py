"""Templates become messages: locales, escaping, each channel's limits; nothing but RenderError, whatever the data."""

from __future__ import annotations

import string
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notifier.message import EmailContent, PushContent, PushOptions, SmsContent
from notifier.stages.render import (
    Compiled,
    Renderer,
    RenderError,
    compile_inline,
    compile_version,
    missing_variables,
    payload_bytes,
    render,
)

TEXTS = {
    "push": {"en": {"title": "Hi {{ name }}", "body": "Order {{ order.id }}"}},
    "sms": {"en": {"text": "Order {{ order.id }}"}, "de": {"text": "Bestellung {{ order.id }}"}},
    "email": {
        "en": {"subject": "Order {{ order.id }}", "html": "<p>Hi <b>{{ name }}</b></p>"},
        "zh-Hant": {"subject": "訂單 {{ order.id }}", "text": "你好 {{ name }}"},
    },
}
DATA = {"name": "Ada & Co", "order": {"id": "A-1"}}


def inline(channel: str, data: Any = None, options: Any = None, **fields: str) -> Any:
    return render(compile_inline({channel: fields}), channel, "en", data or {}, options or {})


def refusal(channel: str, data: Any = None, options: Any = None, **fields: str) -> RenderError:
    with pytest.raises(RenderError) as caught:
        inline(channel, data, options, **fields)
    return caught.value


@pytest.mark.parametrize(
    ("asked", "answers"),
    [
        ("de", "de"), ("de-AT", "de"), ("DE_at", "de"), ("de-Latn-AT-1996", "de"), ("en", "en"), ("fr", "en"),
        ("", "en"), ("d", "en"), ("deu", "en"), ("x" * 300, "en"),
    ],
)  # fmt: skip
def test_a_locale_falls_back_to_its_language_and_then_to_the_default(asked: str, answers: str) -> None:
    assert Compiled(1, TEXTS, "en").resolve("sms", asked) == answers


def test_a_script_is_kept_apart_from_its_language() -> None:
    compiled = Compiled(1, TEXTS, "en")
    assert compiled.resolve("email", "zh-Hant-TW") == "zh-Hant"
    assert compiled.resolve("email", "zh-Hans-CN") == "en"


def test_the_default_locale_falls_back_too() -> None:
    assert Compiled(1, {"sms": {"de": {"text": "x"}}}, "de-AT").resolve("sms", "fr") == "de"


def test_a_channel_without_texts_is_no_content() -> None:
    with pytest.raises(RenderError) as caught:
        render(Compiled(1, {"sms": TEXTS["sms"]}, "en"), "push", "en", DATA)
    assert caught.value.code == "no_content"
    assert Compiled(1, {"sms": {"de": {"text": "x"}}}, "en").resolve("sms", "fr") is None


def test_html_is_escaped_and_everything_else_is_not() -> None:
    compiled = Compiled(1, TEXTS, "en")
    mail = render(compiled, "email", "en", DATA)
    assert mail == EmailContent("Order A-1", "Hi Ada & Co", "<p>Hi <b>Ada &amp; Co</b></p>")
    assert render(compiled, "push", "en", DATA) == PushContent("Hi Ada & Co", "Order A-1")
    assert render(compiled, "sms", "de-CH", DATA) == SmsContent("Bestellung A-1")


@pytest.mark.parametrize("value", ["<b>", '" onload="x', "'", "&amp;", "</p><script>"])
@pytest.mark.parametrize(
    "source",
    [
        "{{ v }}",
        "{% if v %}{{ v }}{% endif %}",
        "{% for x in list %}{{ x }}{% endfor %}",
        "{{ v | upcase | downcase }}",
        "{{ v | append: v }}",
        "{{ list | join: ', ' }}",
        "{% assign w = v %}{{ w }}",
        "{% capture w %}{{ v }}{% endcapture %}{{ w }}",
        "{{ v | newline_to_br }}",
        "{{ '%' | replace: '%', v }}",
        "{{ v | escape }}",
        "{{ v | strip_newlines }}",
        "{{ missing | default: v }}",
        "{% cycle v %}",
        "{% echo v %}",
        "{{ list }}",
        "{{ object.v }}",
    ],
)
def test_no_way_around_escaping(source: str, value: str) -> None:
    data = {"v": value, "list": [value], "object": {"v": value}}
    html = inline("email", data, subject="x", html=source).html
    for character in "<>\"'":
        assert character not in html
    assert "&" in html


def test_a_missing_variable_is_named() -> None:
    error = refusal("push", {"order": {}}, title="x", body="one\n{{ order.eta }}")
    assert (error.code, error.detail) == ("render_error", "push body: order.eta is undefined (line 2)")


def test_a_missing_variable_is_false_in_a_condition_and_replaced_by_a_default() -> None:
    source = (
        "{% if a.b %}1{% else %}2{% endif %}{% unless a %}3{% endunless %}{% if a == nil %}4{% endif %}"
        '{% if a == "x" or a contains "y" or a > 3 %}no{% endif %}{{ a.b | default: "5" }}{% case a %}{% when "x" %}no'
        "{% else %}6{% endcase %}"
    )
    assert inline("sms", text=source).text == "23456"


@pytest.mark.parametrize(
    "source",
    [
        "{{ a }}",
        "{{ a | upcase }}",
        "{{ a | size }}",
        "{{ a | join }}",
        "{{ a | date }}",
        "{{ a | concat: b }}",
        "{{ 'x' | append: a }}",
        "{% for x in a %}{% endfor %}",
    ],
)
def test_a_missing_variable_is_never_silently_empty(source: str) -> None:
    assert refusal("sms", text="x" + source).code == "render_error"


def test_a_null_is_empty() -> None:
    assert inline("sms", {"a": None}, text="[{{ a }}]").text == "[]"


@pytest.mark.parametrize("separator", ["\n", "\r", "\r\nBcc: x@example.com", "\x00", "\u2028", "\x85", "\x0b"])
def test_data_cannot_break_a_header(separator: str) -> None:
    error = refusal("email", {"v": f"a{separator}b"}, subject="{{ v }}", text="x")
    assert (error.code, error.detail) == ("rejected_content", "subject holds a line break or control character")


@pytest.mark.parametrize(
    "options",
    [
        {"from": "a@example.com\r\nBcc: b@example.com"},
        {"reply_to": "a@example.com\nx"},
        {"headers": {"References": "<a>\r\n<b>"}},
        {"headers": {"Bcc": "b@example.com"}},
        {"headers": {"Importance\r\nBcc": "x"}},
    ],
)
def test_options_cannot_break_a_header(options: dict[str, Any]) -> None:
    assert refusal("email", {}, {"email": options}, subject="s", text="x").code == "rejected_content"


def test_space_around_a_subject_is_the_files_and_goes() -> None:
    assert inline("email", {}, subject="\n  Hello\tthere \n", text="x").subject == "Hello there"


@pytest.mark.parametrize("channel", ["push", "sms", "email"])
def test_a_nul_is_refused_everywhere(channel: str) -> None:
    fields = {
        "push": {"title": "t", "body": "{{ v }}"},
        "sms": {"text": "{{ v }}"},
        "email": {"subject": "s", "text": "{{ v }}"},
    }
    assert refusal(channel, {"v": "a\x00b"}, **fields[channel]).code == "rejected_content"


def test_what_is_empty_is_refused() -> None:
    data = {"v": "  "}
    assert refusal("sms", data, text="{{ v }}\u200b").code == "rejected_content"
    assert refusal("push", data, title="{{ v }}", body="{{ v }}").code == "rejected_content"
    assert refusal("email", data, subject="{{ v }}", text="x").code == "rejected_content"
    assert refusal("email", data, subject="x", text="{{ v }}").code == "rejected_content"


def test_a_silent_push_needs_no_words() -> None:
    content = inline("push", {}, {"push": {"silent": True}}, title="", body="")
    assert content == PushContent("", "", PushOptions(silent=True))


def test_a_push_beyond_4096_bytes_is_too_large() -> None:
    assert refusal("push", {"v": "x" * 4000}, title="t", body="{{ v }}").code == "payload_too_large"
    fits = inline("push", {"v": "x" * 3800}, title="t", body="{{ v }}")
    assert 3800 < payload_bytes(fits) <= 4096
    korean = refusal("push", {"v": "한" * 1400}, title="t", body="{{ v }}")
    assert korean.code == "payload_too_large"
    assert refusal("push", {}, {"push": {"data": {"k": "x" * 4000}}}, title="t", body="b").code == "payload_too_large"


def test_an_sms_beyond_1600_characters_is_too_large() -> None:
    assert refusal("sms", {"v": "x" * 1601}, text="{{ v }}").code == "payload_too_large"
    assert len(inline("sms", {"v": "x" * 1600}, text="{{ v }}").text) == 1600


def test_a_mails_bodies_have_512_kib_together() -> None:
    big = "x" * (300 * 1024)
    assert refusal("email", {"v": big}, subject="s", text="{{ v }}", html="{{ v }}").code == "payload_too_large"
    assert refusal("email", {"v": big}, subject="s", text="{{ v }}{{ v }}").code == "payload_too_large"
    assert inline("email", {"v": big}, subject="s", text="{{ v }}").text == big
    assert (
        refusal("email", {"v": "é" * (200 * 1024)}, subject="s", text="{{ v }}", html="{{ v }}").code
        == "payload_too_large"
    )
    assert refusal("email", {"v": "x" * 999}, subject="{{ v }}", text="x").code == "payload_too_large"


def test_options_reach_their_channel_only() -> None:
    options = {
        "push": {"badge": 3, "deep_link": "shop://o/1", "data": {"k": "v"}, "sound": None, "ttl_s": 60},
        "email": {"from": "Shop <a@example.com>", "reply_to": "b@example.com", "headers": {"Importance": "high"}},
        "sms": {"sender": "SHOP"},
    }
    push = inline("push", {}, options, title="t", body="b")
    assert push.options == PushOptions(badge=3, deep_link="shop://o/1", data={"k": "v"}, ttl_s=60)
    mail = inline("email", {}, options, subject="s", text="x")
    assert (mail.sender, mail.reply_to, mail.headers) == (
        "Shop <a@example.com>",
        "b@example.com",
        {"Importance": "high"},
    )
    assert inline("sms", {}, options, text="x") == SmsContent("x", "SHOP")


def test_a_written_text_part_is_kept() -> None:
    assert inline("email", {}, subject="s", html="<p>a</p>", text="b").text == "b"


def test_a_derived_text_follows_the_datas_branches() -> None:
    items = "<ul>{% for i in items %}<li>{{ i.name }}</li>{% endfor %}</ul>"
    html = items + '{% if url %}<a href="{{ url }}">Go &amp; see</a>{% endif %}'
    data = {"items": [{"name": "A < B"}, {"name": "C"}], "url": "https://e.com/?a=1&b=2"}
    mail = inline("email", data, subject="s", html=html)
    assert mail.text == "- A < B\n- C\n\nGo & see (https://e.com/?a=1&b=2)"
    assert "A &lt; B" in mail.html
    assert inline("email", {"items": [], "url": None}, subject="s", html="x" + html).text == "x"


def test_a_version_is_compiled_once_per_process() -> None:
    first = compile_version("test-once", TEXTS, "en")
    assert compile_version("test-once", {}, "de") is first
    for number in range(2000):
        compile_version(f"test-filler-{number}", {}, "en")
    assert compile_version("test-once", TEXTS, "en") is not first


def test_the_variables_of_a_version_are_listed() -> None:
    compiled = Compiled(1, TEXTS, "en")
    assert compiled.variables() == ("name", "order.id")
    assert compiled.variables("sms") == ("order.id",)
    assert compiled.locales("sms") == ("en", "de")
    assert compiled.locales("fax") == ()


def test_missing_variables_are_those_of_the_asked_channels_in_all_locales() -> None:
    compiled = Compiled(1, TEXTS | {"sms": {"en": {"text": "a"}, "de": {"text": "{{ only.german }}"}}}, "en")
    assert missing_variables(compiled, ["push"], {}) == [("name",), ("order", "id")]
    assert missing_variables(compiled, ["sms"], {}) == [("only", "german")]
    assert missing_variables(compiled, ["email", "push"], DATA) == []


def test_a_broken_source_is_a_render_error_that_names_it() -> None:
    error = refusal("sms", text="a\n{% if %}")
    assert (error.code, error.detail.split(":")[0]) == ("render_error", "sms und")
    assert "line 2" in error.detail


def test_people_with_the_same_data_share_one_content() -> None:
    compiled, renderer = Compiled(1, TEXTS, "en"), Renderer()
    first = renderer.render(compiled, "sms", "de", DATA)
    assert renderer.render(compiled, "sms", "de-AT", DATA) is first
    assert renderer.render(compiled, "sms", "en", DATA) is not first
    assert renderer.render(compiled, "sms", "de", dict(DATA)) == first
    assert renderer.render(compiled, "sms", "de", DATA | {"order": {"id": "B"}}).text == "Bestellung B"
    other = Compiled(1, {"sms": {"de": {"text": "andere"}}}, "de")
    assert renderer.render(other, "sms", "de", DATA).text == "andere"


def test_a_shared_refusal_is_raised_each_time() -> None:
    compiled, renderer, data = Compiled(1, TEXTS, "en"), Renderer(), {"name": "x"}
    for _ in range(2):
        with pytest.raises(RenderError, match="render_error"):
            renderer.render(compiled, "sms", "de", data)


def test_a_renderer_does_not_grow_with_a_shift() -> None:
    compiled, renderer = Compiled(1, TEXTS, "en"), Renderer()
    for number in range(5000):
        assert renderer.render(compiled, "sms", "de", {"order": {"id": number}}).text == f"Bestellung {number}"
    assert len(renderer._made) <= 256


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(string.ascii_lowercase[:4], max_size=2), inner, max_size=4)
    ),
    max_leaves=20,
)
FILTERS = (
    "upcase", "size", "first", "join", "date: '%F'", "times: 3", "divided_by: a", "round", "sort", "uniq", "map: 'a'",
    "split: ','", "slice: 1, 2", "truncate: 3", "where: 'a'", "sum", "url_encode", "base64_decode", "append: b",
    "reverse", "default: 'x'", "concat: b", "compact", "replace: 'a', b", "plus: b", "abs", "floor",
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    data=st.dictionaries(st.sampled_from(["a", "b", "c"]), JSON, max_size=3),
    filters=st.lists(st.sampled_from(FILTERS), max_size=4),
    channel=st.sampled_from(["push", "sms", "email"]),
)
def test_whatever_the_data_only_a_render_error_comes_out(
    data: dict[str, Any], filters: list[str], channel: str
) -> None:
    expression = " | ".join(["a", *filters])
    source = (
        f"{{{{ {expression} }}}}{{% for x in b %}}{{{{ x.a }}}}{{{{ c }}}}{{% endfor %}}{{% if c > b %}}y{{% endif %}}"
    )
    fields = {"title": source, "body": "b", "text": source, "subject": source, "html": source}
    compiled = compile_inline({channel: {name: fields[name] for name in _FIELDS[channel]}})
    try:
        content = render(compiled, channel, "en", data)
    except RenderError as error:
        assert error.code in {"render_error", "payload_too_large", "rejected_content"}
    else:
        msgspec.json.encode(content)


_FIELDS = {"push": ("title", "body"), "sms": ("text",), "email": ("subject", "html")}


@settings(max_examples=300, deadline=None)
@given(data=st.dictionaries(st.sampled_from(["a", "b"]), JSON, max_size=2), html=st.booleans())
def test_the_quick_lookups_say_what_the_library_says(data: dict[str, Any], html: bool) -> None:
    from notifier.stages.liquid import Part, Refused

    def said(source: str) -> str:
        try:
            return Part(source, html=html).render(data)
        except Refused as refusal:
            return f"refused: {refusal}"

    for path in ("a", "a.b", "a.a.b", "b.size", "a.first", "b[0]"):
        # A name that the text assigns itself is always looked up by the library.
        assert said(f"{{{{ {path} }}}}") == said(f"{{% assign z = {path} %}}{{{{ z }}}}")
        looped = f"{{% for i in (1..1) %}}{{{{ {path} }}}}{{% endfor %}}"
        assert said(looped) == said(f"{{{{ {path} }}}}")
