"""The tree of errors: every class by its code, and through the application as the contract says."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI

from api.running import make_service, pair
from densepath import errors
from densepath.api.app import create_app
from densepath.errors import BY_CODE, DensepathError
from densepath.pair.pair import Pair

__all__ = ["pair"]

STATUS = {
    "malformed_body": 400,
    "invalid_api_key": 401,
    "admin_key_required": 403,
    "model_not_found": 404,
    "route_not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "model_version_mismatch": 409,
    "swap_in_progress": 409,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "invalid_item": 422,
    "invalid_request": 422,
    "context_length_exceeded": 422,
    "invalid_pair": 422,
    "quota_exceeded": 429,
    "non_finite_score": 500,
    "internal_error": 500,
    "overloaded": 503,
    "draining": 503,
    "engine_unavailable": 503,
    "deadline_exceeded": 504,
}


def tree(root: type[DensepathError] = DensepathError) -> list[type[DensepathError]]:
    return [root, *(leaf for sub in root.__subclasses__() for leaf in tree(sub))]


def test_codes_and_statuses_are_the_contract_s() -> None:
    assert {code: cls.status for code, cls in BY_CODE.items()} == STATUS
    for code, cls in BY_CODE.items():
        assert cls.code == code


def test_every_class_is_drawn_and_has_a_builtin_beside_the_root() -> None:
    assert errors.__doc__ is not None
    for cls in tree()[1:]:
        assert f" {cls.__name__}" in errors.__doc__
        if "code" in vars(cls):
            assert f"{cls.status} {cls.code}" in errors.__doc__
        builtin = [base for base in cls.__mro__ if base.__module__ == "builtins"]
        assert builtin[0] is not Exception, cls


@pytest.fixture
def app(pair: Pair) -> FastAPI:
    return create_app(make_service(pair), engine="fake")


@pytest.mark.parametrize("cls", tree(), ids=lambda cls: cls.__name__)
async def test_a_route_that_raises_it_answers_with_it(cls: type[DensepathError], app: FastAPI) -> None:
    @app.get("/raises")
    async def raises() -> None:
        raise cls("what is wrong", param="items[3]", retry_after=7)

    async with httpx.AsyncClient(base_url="http://x", transport=httpx.ASGITransport(app)) as client:
        answer = await client.get("/raises")
    assert answer.status_code == cls.status
    assert answer.json() == {
        "error": {"message": "what is wrong", "type": cls.type, "param": "items[3]", "code": cls.code}
    }
    assert answer.headers["retry-after"] == "7"
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("cls", [cls for cls in tree() if issubclass(cls, errors.UnavailableError)])
async def test_not_now_always_says_when(cls: type[DensepathError], app: FastAPI) -> None:
    @app.get("/raises")
    async def raises() -> None:
        raise cls("not now")

    async with httpx.AsyncClient(base_url="http://x", transport=httpx.ASGITransport(app)) as client:
        answer = await client.get("/raises")
    assert int(answer.headers["retry-after"]) >= 1
