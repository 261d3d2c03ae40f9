"""Request bodies in the OpenAPI document. The routes parse them, so FastAPI cannot find their models."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from densepath.wire import JSON_MEDIA_TYPE

_requests: dict[
    str, type[BaseModel]
] = {}  # name of a model → the model, for every model that `body_of` was given


def reference(model: type[BaseModel]) -> dict[str, str]:
    """A reference to a model in the document."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def body_of(*models: type[BaseModel], **other_media: Any) -> dict[str, Any]:
    """The `requestBody` of a route that takes one of `models` as JSON, and `other_media` besides."""
    _requests.update({model.__name__: model for model in models})
    schema = reference(models[0]) if len(models) == 1 else {"anyOf": [reference(model) for model in models]}
    return {
        "requestBody": {"required": True, "content": {JSON_MEDIA_TYPE: {"schema": schema}, **other_media}}
    }


def document(app: FastAPI, base: Any) -> dict[str, Any]:
    """FastAPI's own document, made by `base`, with the request models and the API key added."""
    if app.openapi_schema is None:
        schema: dict[str, Any] = base()
        _, definitions = models_json_schema(
            [(model, "validation") for model in _requests.values()],
            ref_template="#/components/schemas/{model}",
        )
        schema["components"]["schemas"] |= definitions["$defs"]
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}, {}]
        app.openapi_schema = schema
    return app.openapi_schema
