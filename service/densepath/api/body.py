"""Reading a request: a body of bounded size and time, JSON with strict types, the deadline."""

from __future__ import annotations

import asyncio
import math
import re
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, TypeVar

import jiter
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request
from starlette.responses import Response

from densepath.api.edge import ClientDisconnectedError, too_large
from densepath.api.engine_calls import caller
from densepath.api.json_values import MOST_VALUES, has_too_many_values
from densepath.api.lifecycle import draining
from densepath.api.served import Served
from densepath.api.service import Service
from densepath.errors import (
    DeadlineExceededError,
    InvalidItemError,
    InvalidRequestError,
    MalformedBodyError,
    RequestTimeoutError,
    UnsupportedMediaTypeError,
)
from densepath.wire import JSON_MEDIA_TYPE

Model = TypeVar("Model", bound=BaseModel)
T = TypeVar("T")
Element = TypeVar("Element")
#: Larger bodies are parsed one at a time, beside the smaller ones.
LARGE_BODY_BYTES = 1 << 20
#: Lists whose elements are tokens: a wrong element there is a wrong item.
TOKEN_LISTS = frozenset({"prompt_token_ids", "response_token_ids", "token_ids", "response_mask", "tokens"})

#: Of a body that is not read: a guess, for its Retry-After alone.
BYTES_OF_A_TOKEN = 8
_unwanted: ContextVar[threading.Event] = ContextVar("unwanted")


def media_type(request: Request) -> str:
    """The content type without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request, service: Service) -> bytes:
    """The whole body, refused as soon as it is too large or too slow."""
    with service.traces.stage("read") as span:
        try:
            async with asyncio.timeout(service.limits.body_seconds):
                body = await _receive_all(request, service)
        except TimeoutError as error:
            raise RequestTimeoutError(
                f"the body did not arrive within {service.limits.body_seconds:g} seconds"
            ) from error
        span.count(bytes=len(body))
        return body


async def _receive_all(request: Request, service: Service) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnectedError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > service.limits.max_body_bytes:
            raise too_large(service.limits.max_body_bytes)
        request.state.body.grow(size)
        if chunk:
            chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


async def read_json_body(request: Request, service: Service) -> bytes:
    """The body of a route that takes JSON."""
    if media_type(request) != JSON_MEDIA_TYPE:
        raise UnsupportedMediaTypeError(f"this route takes Content-Type: {JSON_MEDIA_TYPE}")
    return await read_body(request, service)


def parse_json(body: bytes) -> Any:
    """Parse JSON. An object with the same key twice is refused. Fields refuse NaN later, by their types."""
    if has_too_many_values(body):
        raise InvalidRequestError(
            f"the body has more than {MOST_VALUES} JSON values: split it into several requests, or send "
            "/v1/rewards safetensors"
        )
    try:
        return jiter.from_json(body, allow_inf_nan=True, catch_duplicate_keys=True)
    except ValueError as error:
        place = re.search(r"line \d+ column \d+", str(error))
        what = (
            "has the same key twice"
            if "duplicate key" in str(error)
            else "is not JSON, or is nested too deep"
        )
        raise MalformedBodyError(f"the body {what}{f', at {place.group()}' if place else ''}") from None


async def in_pool(service: Service, parse: Callable[..., T], body: bytes, *args: Any) -> T:
    """`parse(body, *args)`, outside the event loop and in a pool of its own.

    A large body waits for other large ones alone. If nobody wants the result any more, a parse that has not
    begun never does, and one that goes through `wanted` ends with the next element.

    Until the tokens are known, the budget counts an upper bound of them. Raises OverloadedError where there
    is no room for it.
    """
    context, unwanted = copy_context(), threading.Event()
    context.run(_unwanted.set, unwanted)
    pool = service.large_bodies if len(body) > LARGE_BODY_BYTES else service.small_bodies
    with service.budget.reading(len(body)):
        try:
            return await asyncio.get_running_loop().run_in_executor(
                pool, partial(context.run, parse, body, *args)
            )
        finally:
            unwanted.set()


def wanted(elements: Iterable[Element]) -> Iterator[Element]:
    """The elements, as long as somebody wants the result of the parse."""
    unwanted = _unwanted.get(None)
    for element in elements:
        if unwanted is not None and unwanted.is_set():
            raise DeadlineExceededError("nobody wants the result of this parse any more")
        yield element


def check_count(value: Any, field: str, max_items: int) -> Any:
    """The same parsed body, before it is validated, unless a list of several prompts has too many."""
    prompts = value.get(field) if isinstance(value, dict) else None
    if isinstance(prompts, list) and len(prompts) > max_items and isinstance(prompts[0], (str, list)):
        raise InvalidItemError(
            f"{field} has {len(prompts)} entries: a request holds 1 to {max_items}", param=field
        )
    return value


def validate(model: type[Model], value: Any, *, at: str = "") -> Model:
    """A value as a model. Raises the contract's error: what is wrong and where, without the input itself."""
    try:
        return model.model_validate(value)
    except ValidationError as refused:
        first = refused.errors(include_url=False, include_context=False, include_input=False)[0]
        raise _error(first, at, list(model.model_fields)) from None


def _error(detail: ErrorDetails, at: str, fields: list[str]) -> InvalidRequestError:
    location = detail["loc"]
    unknown = detail["type"] == "extra_forbidden"
    if unknown:
        location = location[:-1]  # the name of an unknown field is the client's own text
    place = at
    for part in location:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    where = place or "the body"
    if unknown:
        return InvalidRequestError(
            f"{where} has a field that the contract does not have; known here are {', '.join(fields)}",
            param=place or None,
        )
    cls = InvalidItemError if TOKEN_LISTS & set(map(str, location[:-1])) else InvalidRequestError
    return cls(f"{where}: {detail['msg']}", param=place or None)


def deadline(request: Request) -> float:
    """The client's deadline on the event loop's clock; infinity where the client set none."""
    text = request.headers.get("x-request-timeout")
    if text is None:
        return math.inf
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise InvalidRequestError(
            "X-Request-Timeout is a number of seconds greater than 0", param="X-Request-Timeout"
        )
    return float(request.state.began) + seconds


async def read_to_score(
    request: Request,
    service: Service,
    until: float,
    read: Callable[[Request, Service], Coroutine[Any, Any, T]],
) -> T:
    """What `read` reads of a request that is to be scored.

    It is refused before its body is read where its key has used up its quota or the queue is full, and after
    it where the queue is full by then.
    """
    caller.set(request.state.caller)
    service.quotas.ensure(request.state.caller)
    declared = request.headers.get("content-length", "")
    guess = int(declared) // BYTES_OF_A_TOKEN if declared.isdecimal() else 0
    tokens = max(1, min(guess, service.limits.max_queued_tokens))
    service.budget.ensure_room(tokens)
    body = await while_wanted(read(request, service), service, until)
    service.budget.ensure_room(tokens)
    return body


async def while_wanted(
    work: Coroutine[Any, Any, T], service: Service, until: float, *, reader: Request | None = None
) -> T:
    """Run `work` until it is done, the deadline passes, the drain time is over or `reader` disconnects.

    In the last three cases the work is cancelled, in the engine too, before this returns. While the body is
    being read, the reading itself notices a disconnect: give `reader` only after that.
    """
    task = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(service.lifecycle.out_of_time.wait())
    gone = asyncio.ensure_future(_hang_up(reader)) if reader else asyncio.Future[None]()
    others = (stopped, gone)
    try:
        timeout = None if math.isinf(until) else max(until - asyncio.get_running_loop().time(), 0.0)
        await asyncio.wait({task, *others}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientDisconnectedError
        if stopped.done():
            raise draining()
        raise DeadlineExceededError("the deadline of X-Request-Timeout has passed; the work is cancelled")
    finally:
        for each in (task, *others):
            each.cancel()
        await asyncio.gather(task, *others, return_exceptions=True)


async def answer_json(
    request: Request, service: Service, work: Callable[[bytes, Served], Coroutine[Any, Any, bytes]]
) -> Response:
    """The JSON that `work` makes of a JSON body and of what is served.

    The work ends with the deadline of the request, or when nobody wants its answer any more.
    """
    served = service.lifecycle.take()
    until = deadline(request)
    body = await read_to_score(request, service, until, read_json_body)
    content = await while_wanted(work(body, served), service, until, reader=request)
    return Response(content, media_type=JSON_MEDIA_TYPE)


async def _hang_up(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
