"""Which variables a text needs: asked before a request is accepted, so that rendering does not fail later.

The rule: a variable is asked for when the text, with this data, would certainly use it.
- `{{ a.b }}`, `{{ a.b | upcase }}`, filter arguments, assigned expressions and lists of `for` are asked for.
- `{{ a.b | default: "..." }}` is not; nor is what only a condition looks at: a missing variable is false there.
- Inside `if`, `unless` and `case` the branch that this data takes counts, so a text guarded by itself asks nothing.
- Inside `for` each of the first 100 items is looked at; with no items, the `else`.
- Names the text assigns itself are never asked for, and a condition on one takes no branch: not asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from liquid.ast import BlockNode, ConditionalBlockNode, Node
from liquid.builtin.expressions import BooleanExpression, FilteredExpression, LoopExpression, Path
from liquid.builtin.tags.case_tag import CaseNode, MultiExpressionBlockNode
from liquid.builtin.tags.for_tag import ForNode
from liquid.builtin.tags.if_tag import IfNode
from liquid.builtin.tags.unless_tag import UnlessNode
from liquid.expression import Expression

from notifier.stages.liquid import Context, Part, plain_path

ITEMS_LIMIT = 100

Segments = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class _Branch:
    condition: Expression | None  # None: else
    negated: bool
    needs: _Needs
    path: tuple[str, ...] = ()  # the condition, where it is only a variable: asked without the library


@dataclass(frozen=True, slots=True)
class _Loop:
    items: Segments
    name: str
    body: _Needs
    otherwise: _Needs


@dataclass(frozen=True, slots=True)
class _Needs:
    paths: tuple[Segments, ...] = ()
    choices: tuple[tuple[_Branch, ...], ...] = ()
    loops: tuple[_Loop, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.paths or self.choices or self.loops)


@dataclass(frozen=True, slots=True)
class Needs:
    """What one part needs, ready to be asked of any data."""

    part: Part = field(repr=False)
    needs: _Needs

    def missing(self, data: Mapping[str, Any]) -> list[Segments]:
        """The paths that `data` lacks, e.g. `("order", "items", 0, "name")`. A null is there."""
        found: dict[Segments, None] = {}
        _ask(self.needs, self.part, data, {}, found)
        return list(found)


def needs_of(part: Part) -> Needs:
    return Needs(part, _collect(part.nodes, part.assigned))


def has(data: Any, path: Iterable[str | int]) -> bool:
    """Whether Liquid would find `path` in `data`."""
    value = data
    for name in path:
        if type(value) is dict and name in value:
            value = value[name]
        elif name == "size" and isinstance(value, str | list | dict):
            value = len(value)
        elif name in ("first", "last") and isinstance(value, list) and value:
            value = value[0 if name == "first" else -1]
        elif isinstance(name, int) and isinstance(value, list) and -len(value) <= name < len(value):
            value = value[name]
        else:
            return False
    return True


def _ask(
    needs: _Needs, part: Part, scope: Mapping[str, Any], names: Mapping[str, Segments], found: dict[Segments, None]
) -> None:
    for path in needs.paths:
        if not has(scope, path):
            found[(*names.get(str(path[0]), (path[0],)), *path[1:])] = None
    context: Context | None = None
    for branches in needs.choices:
        for branch in branches:
            if branch.condition is not None and not branch.path and context is None:
                context = part.context(scope)
            if _is_taken(branch, scope, context):
                _ask(branch.needs, part, scope, names, found)
                break
    for loop in needs.loops:
        items = _value(scope, loop.items)
        if not isinstance(items, list) or not items:
            _ask(loop.otherwise, part, scope, names, found)
            continue
        prefix = (*names.get(str(loop.items[0]), (loop.items[0],)), *loop.items[1:])
        for index, item in enumerate(items[:ITEMS_LIMIT]):
            _ask(loop.body, part, {**scope, loop.name: item}, {**names, loop.name: (*prefix, index)}, found)


def _is_taken(branch: _Branch, scope: Mapping[str, Any], context: Context | None) -> bool:
    if branch.condition is None:
        return True
    if branch.path:
        value = _value(scope, branch.path)
        return (value is not None and value is not False) is not branch.negated
    assert context is not None  # noqa: S101 - made by the caller for every condition that is not a path
    try:
        said = branch.condition.evaluate(context)
        # `when 1, 2` answers with a list, one for each of its values.
        return (any(said) if isinstance(said, list) else bool(said)) is not branch.negated
    except Exception:  # a comparison of unlike values: it will fail the render, and is no missing variable
        return False


def _value(scope: Any, path: Segments) -> Any:
    for name in path:
        try:
            scope = scope[name]
        except (KeyError, TypeError, IndexError):
            return None
    return scope


def _collect(nodes: Iterable[Node], assigned: frozenset[str]) -> _Needs:
    paths: dict[Segments, None] = {}  # a set that keeps the text's order
    choices: list[tuple[_Branch, ...]] = []
    loops: list[_Loop] = []
    for node in nodes:
        if isinstance(node, IfNode | UnlessNode | CaseNode):
            branches = tuple(_branches(node, assigned))
            looked_at = [node.expression] if isinstance(node, CaseNode) else []
            looked_at += [branch.condition for branch in branches if branch.condition]
            if any(branch.needs for branch in branches) and not _use(looked_at, assigned):
                choices.append(branches)
        elif isinstance(node, ForNode):
            over = node.expression
            paths.update(dict.fromkeys(_needed(over, assigned)))
            items = _segments(over.iterable, assigned)
            inner = assigned | {"forloop"}
            body = _collect([node.block], inner)
            otherwise = _collect([node.default], assigned) if node.default else _Needs()
            if items and (body or otherwise):
                loops.append(_Loop(items, over.identifier, body, otherwise))
        else:
            for expression in node.expressions():
                paths.update(dict.fromkeys(_needed(expression, assigned)))
            inner_needs = _collect(_children(node), assigned)
            paths.update(dict.fromkeys(inner_needs.paths))
            choices.extend(inner_needs.choices)
            loops.extend(inner_needs.loops)
    return _Needs(tuple(paths), tuple(choices), tuple(loops))


def _children(node: Node) -> Sequence[Node]:
    """Blocks and captures; text and outputs have none, and nothing here loads another template."""
    block = getattr(node, "block", None)
    return node.nodes if isinstance(node, BlockNode) else [block] if isinstance(block, Node) else []


def _branches(node: IfNode | UnlessNode | CaseNode, assigned: frozenset[str]) -> Iterator[_Branch]:
    if isinstance(node, CaseNode):
        for block in node.blocks:
            condition = block.expression if isinstance(block, MultiExpressionBlockNode) else None
            yield _Branch(condition, False, _collect(_children(block), assigned))
        return
    needs = _collect([node.consequence], assigned)
    yield _Branch(node.condition, isinstance(node, UnlessNode), needs, _only_path(node.condition))
    alternatives: list[ConditionalBlockNode] = node.alternatives
    for alternative in alternatives:
        needs = _collect([alternative.block], assigned)
        yield _Branch(alternative.expression, False, needs, _only_path(alternative.expression))
    if node.default:
        yield _Branch(None, False, _collect([node.default], assigned))


def _only_path(condition: Expression) -> tuple[str, ...]:
    path = plain_path(condition.expression) if isinstance(condition, BooleanExpression) else ()
    return () if {"size", "first", "last"} & set(path) else path


def _use(expressions: Iterable[Expression], names: frozenset[str]) -> bool:
    return any(str(path.head()) in names for expression in expressions for path in _paths(expression))


def _needed(expression: Expression, assigned: frozenset[str]) -> Iterator[Segments]:
    if isinstance(expression, FilteredExpression):
        filters = expression.filters or []
        if not (filters and filters[0].name == "default"):
            yield from _needed(expression.left, assigned)
        for filter_ in filters:
            if filter_.name != "default":
                for argument in filter_.children():
                    yield from _needed(argument, assigned)
        return
    if isinstance(expression, LoopExpression):
        for child in expression.children():
            yield from _needed(child, assigned)
        return
    for path in _paths(expression):
        segments = _segments(path, assigned)
        if segments:
            yield segments


def _paths(expression: Expression) -> Iterator[Path]:
    if isinstance(expression, Path):
        yield expression
    for child in expression.children():
        yield from _paths(child)


def _segments(expression: Expression, assigned: frozenset[str]) -> Segments:
    """The path as far as it is fixed: `a.b[c].d` is `a.b`. Empty for a name of the text's own."""
    if not isinstance(expression, Path):
        return ()
    fixed: list[str | int] = []
    for segment in expression.path:
        if not isinstance(segment, str | int):
            break
        fixed.append(segment)
    return () if not fixed or str(fixed[0]) in assigned else tuple(fixed)
