"""Liquid for authors we do not know: one parsed part, and what a render of it may cost.

Data is plain JSON, so a template can call nothing. What a template can still do is burn time and memory; every
way we know of is bounded here or in `liquid_filters`. https://jg-rp.github.io/liquid/ documents the library.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import _GeneratorContextManager
from typing import Any, TextIO, cast

from liquid import Environment, RenderContext, escape
from liquid.ast import Node
from liquid.builtin.content import ContentNode
from liquid.builtin.expressions import FilteredExpression, Path
from liquid.builtin.output import Output, OutputNode
from liquid.exceptions import LiquidError, ResourceLimitError, UndefinedError
from liquid.expression import Expression
from liquid.stream import TokenStream
from liquid.template import BoundTemplate
from liquid.token import Token
from liquid.undefined import FalsyStrictUndefined
from liquid.utils import ReadOnlyChainMap

from notifier.stages import liquid_filters
from notifier.stages.liquid_filters import Meter

OUTPUT_LIMIT_BYTES = 512 * 1024  # of one part: what the API takes for an email's bodies
LOOP_LIMIT = 10_000  # iterations in one render, all loops together
LOCALS_LIMIT_BYTES = 4 * 1024 * 1024  # assigned and captured in one render, all together
CPU_LIMIT_S = 0.5  # of one part; a 30-line email takes 0.0001
TAG_LIMIT = 2_000  # tags and outputs in one part: parsing costs about 20 us each
TAG_LIMIT_CHARS = 2_000  # between a tag's delimiters; the library's lexer is quadratic in it (2.3.6)
SPACE_LIMIT_CHARS = 200  # in a row inside a tag; the library's lexer is cubic in it (2.3.6)

TAGS = frozenset(
    {"if", "unless", "case", "for", "break", "continue", "assign", "capture", "cycle", "comment", "echo", "#"}
)
_INNER_TAGS = frozenset(
    {"elsif", "else", "endif", "endunless", "when", "endcase", "endfor", "endcapture", "endcomment", "raw", "endraw"}
)

_OPENING = re.compile(r"\{([{%])-?\s{0,200}(#|\w*)")
_ENDRAW = re.compile(r"\{%-?\s{0,200}endraw\s{0,200}-?%\}")
_SPACES = re.compile(rf"\s{{{SPACE_LIMIT_CHARS}}}")
_QUOTED_SEGMENT = re.compile(r"\[(['\"]).*?\1\]")


class TemplateError(Exception):
    """A source that cannot be a template. `line` is 1-based; the text holds no data, only the author's own words."""

    def __init__(self, detail: str, line: int | None = None) -> None:
        super().__init__(f"line {line}: {detail}" if line else detail)
        self.line = line


class Refused(Exception):
    """A render that gave no text. `too_large` when only its size was wrong. The text holds no value of the data."""

    def __init__(self, detail: str, *, too_large: bool = False) -> None:
        super().__init__(detail)
        self.too_large = too_large


class Context(RenderContext):
    """One render: the library's scopes without its clock (`now`, `today`), and with our limits."""

    __slots__ = ("_assigned_bytes", "_iterations", "_meter")

    def __init__(self, template: BoundTemplate, *, globals: Mapping[str, object], **kwargs: Any) -> None:
        super().__init__(template, globals=globals, **kwargs)
        self.scope = ReadOnlyChainMap(self.locals, globals)
        self._meter = Meter(CPU_LIMIT_S)
        self._assigned_bytes = 0
        self._iterations = 0

    def spend(self) -> None:
        self._meter.check()

    def assign(self, key: str, val: Any) -> None:
        self._assigned_bytes += sys.getsizeof(val, 1)
        if self._assigned_bytes > LOCALS_LIMIT_BYTES:
            raise ResourceLimitError("too much is assigned", token=None)
        self.locals[key] = val

    def loop(self, namespace: Mapping[str, object], forloop: Any) -> _GeneratorContextManager[RenderContext]:
        self._iterations += forloop.length
        if self._iterations > LOOP_LIMIT:
            raise ResourceLimitError(f"the loops run more than {LOOP_LIMIT} times", token=None)
        forloop.it = self._metered(forloop.it)
        return super().loop(namespace, forloop)

    def _metered(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self._meter.check()
            yield item


class _Lookup(OutputNode):
    """`{{ a.b.c }}`: what most outputs are, looked up here at a fraction of the library's cost."""

    __slots__ = ("path",)

    def __init__(self, token: Token, expression: Expression) -> None:
        super().__init__(token, expression)
        self.path: tuple[str, ...] = ()
        if isinstance(expression, FilteredExpression) and not expression.filters:
            self.path = plain_path(expression.left)

    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:
        if self.path:
            for namespace in context.scope._maps:
                if self.path[0] in namespace:
                    text = simple_text(namespace, self.path, context.autoescape)
                    if text is not None:
                        return buffer.write(text)
                    break
        return super().render_to_output(context, buffer)


class _OutputTag(Output):
    node_class = _Lookup


class _Template(BoundTemplate):
    context_class = Context


class _Environment(Environment):
    template_class = _Template
    output_stream_limit = OUTPUT_LIMIT_BYTES  # what capture may hold

    def setup_tags_and_filters(self, *, extra: bool = False) -> None:
        super().setup_tags_and_filters(extra=False)
        self.add_tag(_OutputTag)
        self.tags = {name: tag for name, tag in self.tags.items() if name in TAGS or name in _PSEUDO_TAGS}
        for tag in self.tags.values():
            tag.get_node = _placing_errors(tag.get_node)  # type: ignore[method-assign, assignment]
        liquid_filters.register(self)


def _placing_errors(get_node: Callable[[TokenStream], Node]) -> Callable[[TokenStream], Node]:
    """The library places what ends too early at the end of the text; authors look for where it began."""

    def run(stream: TokenStream) -> Node:
        began = stream.current
        try:
            return get_node(stream)
        except LiquidError as error:
            if error.token is None or error.token.start_index < 0:
                error.token = began
            raise

    return run


_PSEUDO_TAGS = frozenset({"content", "output", "illegal"})  # how the library parses text, {{ }} and strangers
_TEXT = _Environment(undefined=FalsyStrictUndefined)
_HTML = _Environment(undefined=FalsyStrictUndefined, autoescape=True)


class _Output(list[str]):
    """Where nodes write. A list of pieces is cheaper than a stream, and most pieces never pass through here."""

    def __init__(self) -> None:
        self.room = OUTPUT_LIMIT_BYTES

    def write(self, text: str) -> int:
        self.room -= len(text)
        if self.room < 0:
            raise Refused(f"the output is larger than {OUTPUT_LIMIT_BYTES} bytes", too_large=True)
        self.append(text)
        return len(text)


_Step = str | Node


class Part:
    """One text of a template (a subject, a body), parsed once and rendered often.

    Text and plain `{{ a.b }}` lookups, which are most of any template, are rendered here; everything else, and
    every lookup that is not simply a string or whole number, by the library. Raises TemplateError.
    `paths` are the variables it takes from the data (`order.id`), `assigned` the names it makes itself.
    """

    __slots__ = ("_escapes", "_static", "_steps", "_template", "assigned", "nodes", "paths", "source")

    def __init__(self, source: str, *, html: bool = False) -> None:
        self.source = source
        self._escapes = html
        self.assigned: frozenset[str] = frozenset()
        self.paths: frozenset[str] = frozenset()
        self.nodes: Sequence[Node] = ()
        self._static: str | None = None
        if "{{" not in source and "{%" not in source:
            self._steps: tuple[_Step, ...] = (source,)
            return
        self._template = parse(source, html=html)
        analysis = self._template.analyze(include_partials=False)
        for name, spans in analysis.filters.items():
            if name not in liquid_filters.ALLOWED:
                line = source.count("\n", 0, spans[0].index) + 1
                allowed = ", ".join(sorted(liquid_filters.ALLOWED))
                raise TemplateError(f"unknown filter {name!r}; there are {allowed}", line)
        self.nodes = self._template.nodes
        self.assigned = frozenset(analysis.locals)
        self.paths = frozenset(str(path) for paths in analysis.globals.values() for path in paths)
        self._steps = tuple(_steps(self.nodes, self.assigned))

    def context(self, data: Mapping[str, Any]) -> Context:
        return Context(self._template, globals=data)

    def render(self, data: Mapping[str, Any]) -> str:
        """The text with `data` filled in. Raises Refused, and nothing else whatever the data is."""
        if self._static is not None:
            return self._static
        try:
            text = self._render(data)
            if len(text) * 4 > OUTPUT_LIMIT_BYTES or not text.isascii():
                size = len(text.encode())  # also finds what is no Unicode text
                if size > OUTPUT_LIMIT_BYTES:
                    raise Refused(f"the output is {size} bytes, {OUTPUT_LIMIT_BYTES} are allowed", too_large=True)
        except Refused:
            raise
        except LiquidError as error:
            raise Refused(_explain(error), too_large=_is_output_limit(error)) from None
        except Exception as error:  # filters meet values they were not made for: ArithmeticError, RecursionError ...
            raise Refused(f"a value could not be rendered ({type(error).__name__})") from None
        if not self.paths:
            self._static = text
        return text

    def _render(self, data: Mapping[str, Any]) -> str:
        output = _Output()
        context: Context | None = None
        for step in self._steps:
            if isinstance(step, str):
                output.append(step)
                continue
            if isinstance(step, _Lookup):
                text = simple_text(data, step.path, self._escapes)
                if text is not None:
                    output.write(text)
                    continue
            if context is None:
                context = self.context(data)
                context.scope.push({})
            step.render(context, cast(TextIO, output))  # nodes call nothing but write()
        return "".join(output)


def parse(source: str, *, html: bool = False) -> BoundTemplate:
    """The source as the library's tree. Raises TemplateError with the line."""
    _look_over(source)
    try:
        return (_HTML if html else _TEXT).from_string(source)
    except LiquidError as error:
        place = error.context() if error.token else None
        raise TemplateError(str(error.message), place[0] if place else None) from None


def _look_over(source: str) -> None:
    """Refuse what the library's lexer would take seconds over, before it sees it. Linear."""
    count = position = 0
    while opening := _OPENING.search(source, position):
        start, is_tag, name = opening.start(), opening[1] == "%", opening[2]
        line = source.count("\n", 0, start) + 1
        end = source.find("%}" if is_tag else "}}", start + 2, start + TAG_LIMIT_CHARS)
        count += 1
        if end < 0:
            raise TemplateError(f"{opening[0][:20]!r} is not closed within {TAG_LIMIT_CHARS} characters", line)
        if count > TAG_LIMIT:
            raise TemplateError(f"more than {TAG_LIMIT} tags", line)
        if _SPACES.search(source, start, end):
            raise TemplateError(f"more than {SPACE_LIMIT_CHARS} spaces inside a tag", line)
        if is_tag and name not in TAGS and name not in _INNER_TAGS:
            raise TemplateError(f"unknown tag {name!r}; there are {', '.join(sorted(TAGS - {'#'}))}", line)
        position = end + 2
        if is_tag and name == "raw":
            closing = _ENDRAW.search(source, position)
            if not closing:
                raise TemplateError("'raw' is not closed by 'endraw'", line)
            position = closing.end()


def _steps(nodes: Sequence[Node], assigned: frozenset[str]) -> Iterator[_Step]:
    text = ""
    for node in nodes:
        if isinstance(node, ContentNode):
            text += node.text
            continue
        if text:
            yield text
            text = ""
        if isinstance(node, _Lookup) and node.path and node.path[0] in assigned:
            node.path = ()
        yield node
    if text:
        yield text


def simple_text(data: Mapping[str, Any], path: tuple[str, ...], escapes: bool) -> str | None:
    """The value at `path` as output when it is a string or a whole number there; None leaves it to the library."""
    if not path:
        return None
    value: Any = data
    try:
        for name in path:
            value = value[name]
    except (KeyError, TypeError, IndexError):
        return None
    if type(value) is str:
        return escape(value) if escapes else value
    return str(value) if type(value) is int else None


def plain_path(expression: object) -> tuple[str, ...]:
    """The names of `a.b.c`; empty for anything that is not only names."""
    if isinstance(expression, Path) and all(type(segment) is str for segment in expression.path):
        return tuple(map(str, expression.path))
    return ()


def _is_output_limit(error: LiquidError) -> bool:
    return isinstance(error, ResourceLimitError) and "output stream limit" in str(error.message)


def _explain(error: LiquidError) -> str:
    """What went wrong and where, in the author's words: the library's own messages can quote the data."""
    place = error.context() if error.token else None
    where = f" (line {place[0]})" if place else ""
    if isinstance(error, UndefinedError):
        return _QUOTED_SEGMENT.sub("[...]", str(error.message)).replace("'", "") + where
    if isinstance(error, ResourceLimitError):
        return f"{error.message}{where}"
    if error.token and error.token.value:
        return f"{error.token.value[:40]!r} does not fit this value{where}"
    return f"a value could not be rendered{where}"
