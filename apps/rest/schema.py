"""How a view describes itself in the OpenAPI file: from the same shapes that read its bodies and queries."""

from __future__ import annotations

from typing import Any

from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiParameter

PROBLEM = {
    "type": "object",
    "required": ["type", "code", "title", "status", "detail", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "code": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "maxItems": 100,
            "items": {
                "type": "object",
                "required": ["pointer", "code", "detail"],
                "properties": {key: {"type": "string"} for key in ("pointer", "code", "detail")},
            },
        },
    },
}
ANY_OBJECT: dict[str, Any] = {"type": "object", "additionalProperties": True}
"""Answers may gain fields at any time, so they are open objects."""


class ViewSchema(AutoSchema):
    """Reads `bodies`, `queries` and `answers` of a ClientView."""

    view: Any

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
        shape = self.view.queries.get(self.method)
        return [
            OpenApiParameter(name, field.full_schema(), OpenApiParameter.QUERY, required=field.required)
            for name, field in (shape.fields.items() if shape else ())
        ]
