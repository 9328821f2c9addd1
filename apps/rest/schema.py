"""How a view describes itself in the OpenAPI file: from the same shapes that read its bodies and queries."""

from __future__ import annotations

import inspect
from typing import Any

from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiParameter

ANY_OBJECT: dict[str, Any] = {"type": "object", "additionalProperties": True}
"""Answers may gain fields at any time, so they are open objects."""

TEXT: dict[str, Any] = {"type": "string"}
OPTIONAL_TEXT: dict[str, Any] = {"type": ["string", "null"]}
BOOLEAN: dict[str, Any] = {"type": "boolean"}
INTEGER: dict[str, Any] = {"type": "integer"}
UUID: dict[str, Any] = {"type": "string", "format": "uuid"}
TIME: dict[str, Any] = {"type": "string", "format": "date-time"}
OPTIONAL_TIME: dict[str, Any] = {"type": ["string", "null"], "format": "date-time"}


def answer(**fields: dict[str, Any]) -> dict[str, Any]:
    """An object that has all of these fields, and may gain others."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": True}


def array(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


def page_of(item: dict[str, Any]) -> dict[str, Any]:
    return answer(data=array(item), next_cursor=OPTIONAL_TEXT)


FIELD_ERRORS = {"type": "array", "maxItems": 100, "items": answer(pointer=TEXT, code=TEXT, detail=TEXT)}
PROBLEM = answer(type=TEXT, code=TEXT, title=TEXT, status=INTEGER, detail=TEXT, request_id=TEXT)
PROBLEM["properties"]["errors"] = FIELD_ERRORS


class ViewSchema(AutoSchema):
    """Reads `bodies`, `queries`, `request_headers`, `answers`, `undocumented` and `scope` of a ClientView."""

    view: Any

    def is_excluded(self) -> bool:
        return self.method in self.view.undocumented

    def get_operation_id(self) -> str:
        return f"{self.method.lower()}{type(self.view).__name__}"

    def get_description(self) -> str:  # type: ignore[override]  # as drf-spectacular has it
        """The scope that is needed, then the method's own words, or the view's; never those of a class above it."""
        method = getattr(self.view, self.method.lower(), None)
        words = inspect.cleandoc(getattr(method, "__doc__", None) or vars(type(self.view)).get("__doc__") or "")
        scope = getattr(self.view, "scope", "")
        scope = scope.get(self.method, "") if isinstance(scope, dict) else scope
        return "\n\n".join(filter(None, [f"Scope: `{scope}`." if scope else "", words]))

    def get_tags(self) -> list[str]:
        return [self.path.strip("/").split("/")[1]]

    def get_request_serializer(self) -> Any:
        shape = self.view.bodies.get(self.method)
        return {"application/json": shape.full_schema()} if shape else None

    def get_response_serializers(self) -> Any:
        usual = {204: None} if self.method == "DELETE" else {200: ANY_OBJECT}
        described: dict[Any, Any] = {
            (str(status), "application/json") if schema else str(status): schema
            for status, schema in (self.view.answers.get(self.method) or usual).items()
        }
        described[("default", "application/problem+json")] = PROBLEM
        return described

    def get_override_parameters(self) -> list[Any]:
        return [
            *self._parameters(self.view.queries, OpenApiParameter.QUERY),
            *self._parameters(self.view.request_headers, OpenApiParameter.HEADER),
        ]

    def _parameters(self, shapes: dict[str, Any], location: Any) -> list[Any]:
        fields = shapes[self.method].fields if self.method in shapes else {}
        return [
            OpenApiParameter(name, field.full_schema(), location, required=field.required)
            for name, field in fields.items()
        ]


def endpoints(contract: dict[str, Any]) -> str:
    """The table of docs/api.md: each operation of an OpenAPI file with its scope, its query and its first sentence."""
    lines = ["| Method and path | Scope | Query | |", "|---|---|---|---|"]
    for path, methods in sorted(contract["paths"].items()):
        for method, operation in methods.items():
            scope, _, words = operation["description"].partition("\n\n")
            sentence = " ".join(words.split("\n\n")[0].split()).partition(". ")[0].rstrip(".")
            query = [f"`{p['name']}`" for p in operation.get("parameters", ()) if p["in"] == "query"]
            scope = scope.removeprefix("Scope: ").rstrip(".")
            lines.append(f"| {method.upper()} `{path}` | {scope} | {' '.join(query)} | {sentence} |")
    return "\n".join(lines) + "\n"
