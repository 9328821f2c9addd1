"""The environment variables that the processes read, as the code has them: for `manage.py environment` and the docs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from apps.console.supervisor import ROOT, procfile

SETTINGS = ROOT / "config" / "settings.py"
_COMMENT = re.compile(r"#\s*(.+)$")


class Variable(NamedTuple):
    name: str
    default: str  # as Python or the shell writes it; "" when the variable is required
    meaning: str


def variables() -> list[Variable]:
    """Each once: those of the settings in their order, then those of the Procfile."""
    found: dict[str, Variable] = {}
    for variable in (*_of_settings(SETTINGS), *_of_procfile()):
        earlier = found.get(variable.name)
        if earlier is None or (earlier.default and not variable.default):  # one that may have to be there is required
            found[variable.name] = variable
    return list(found.values())


def markdown() -> str:
    """The table of docs/operations.md."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, default, meaning in variables():
        shown = f"`{default}`" if default else "**required**"
        lines.append(f"| `{name}` | {shown} | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def _of_settings(path: Path) -> Iterator[Variable]:
    """Calls of `env.<type>(NAME, default=...)` and `required(NAME, mend)`.

    What a variable means is the string below its statement, else the comment in its line, else the mend.
    """
    source = path.read_text()
    lines = source.splitlines()
    statements = ast.parse(source).body
    for statement, following in zip(statements, [*statements[1:], None], strict=True):
        if isinstance(statement, ast.FunctionDef):
            continue
        for call in (node for node in ast.walk(statement) if isinstance(node, ast.Call)):
            name = _name(call)
            if not name:
                continue
            default = next((ast.unparse(word.value) for word in call.keywords if word.arg == "default"), "")
            comment = _COMMENT.search(lines[call.lineno - 1])
            meaning = _string(following) or (comment[1] if comment else "") or _string_of(call.args[1:2])
            yield Variable(name, default.strip("'") or '""' if _has_default(call) else "", " ".join(meaning.split()))


def _name(call: ast.Call) -> str:
    function = call.func
    reads = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "env"
    requires = isinstance(function, ast.Name) and function.id == "required"
    return _string_of(call.args[:1]) if reads or requires else ""


def _has_default(call: ast.Call) -> bool:
    return any(word.arg == "default" for word in call.keywords)


def _string(statement: ast.stmt | None) -> str:
    return _string_of([statement.value]) if isinstance(statement, ast.Expr) else ""


def _string_of(nodes: list[ast.expr]) -> str:
    values = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return values[0] if values else ""


def _of_procfile() -> Iterator[Variable]:
    for process, command in procfile().items():
        for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", command):
            option = re.search(rf"(-{{1,2}}[\w-]+)[ =]\$\{{{name}:", command)
            yield Variable(name, default, f"`{option[1]}` of {process}" if option else f"Of {process}.")
