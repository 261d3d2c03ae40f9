"""Errors in the shapes of the servers that the compatible routes imitate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from densepath.errors import DensepathError

Shape = tuple[int, dict[str, Any]]

_VLLM_TYPES = {400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError"}


def answer_of(error: DensepathError, path: str) -> Shape:
    """The status and the JSON of an error on a route."""
    return SHAPES.get(path, _contract)(error)


def _contract(error: DensepathError) -> Shape:
    return error.status, {"error": error.detail()}


def _status(error: DensepathError) -> int:
    """The status of an error there: those servers answer 400 where the contract has 422."""
    return 400 if error.status == 422 else error.status


def _openai(error: DensepathError) -> Shape:
    return _status(error), {"error": error.detail()}


def _vllm(error: DensepathError) -> Shape:
    status = _status(error)
    kind = _VLLM_TYPES.get(status, "InternalServerError" if status == 500 else error.type)
    return status, {"error": {"message": error.message, "type": kind, "param": error.param, "code": status}}


def _sglang(error: DensepathError) -> Shape:
    return _status(error), {"error": {"message": error.message}}


SHAPES: dict[str, Callable[[DensepathError], Shape]] = {
    "/v1/completions": _openai,
    "/inference/v1/generate": _vllm,
    "/generate": _sglang,
}
