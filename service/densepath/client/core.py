"""What the two clients share: which requests to send, what their answers mean, which version is pinned."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import httpx

from densepath.client.answers import USAGE, Answer, read_json, read_rewards
from densepath.client.items import Item
from densepath.client.plan import Chunk, Limits, Options, make_plan, read_items
from densepath.client.results import Score, Scores
from densepath.errors import InternalError, InvalidRequestError, ModelVersionMismatchError
from densepath.wire import JSON_MEDIA_TYPE, MEDIA_TYPE

T = TypeVar("T")

#: Seconds for each connect, each read, each write and a free connection; a deadline shortens them.
TIMEOUT = httpx.Timeout(connect=5, read=300, write=60, pool=300)


@dataclass(frozen=True)
class Exchange(Generic[T]):
    """One request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    body: Callable[[], tuple[str, bytes]] | None = None  # media type and content; built when it is sent

    def content(self) -> tuple[dict[str, str], bytes | None]:
        """The headers and the content to send."""
        if self.body is None:
            return {}, None
        media_type, content = self.body()
        return {"Content-Type": media_type, "Accept": MEDIA_TYPE}, content


class Core:
    """The state of a client, and everything it does but I/O.

    Raises:
        InvalidRequestError: a base URL or a key that no request can be made with.
    """

    def __init__(self, base_url: str, api_key: str | None, pin: bool) -> None:
        self.base_url = _base_url(base_url)
        self.headers = _headers(api_key)
        self.limits: Limits | None = None  # of the service, once it was asked
        self.served: str | None = None  # the version that it named when it was asked
        self.pinned: str | None = None
        self._pin = pin

    def pair(self) -> Exchange[dict[str, Any]]:
        """GET /v1/pair; its limits and its version are kept."""
        return Exchange("GET", "/v1/pair", self._read_pair)

    def tokenize(self, text: str, add_special_tokens: bool) -> Exchange[list[int]]:
        """POST /tokenize."""
        body = json.dumps({"prompt": text, "add_special_tokens": add_special_tokens}).encode()
        return Exchange("POST", "/tokenize", _read_tokens, lambda: (JSON_MEDIA_TYPE, body))

    def remember(self, version: str) -> None:
        """Pin the version of the first answer, where the client pins."""
        if self._pin and self.pinned is None:
            self.pinned = version

    def _read_pair(self, response: httpx.Response) -> dict[str, Any]:
        pair = read_json(response)
        version = pair.get("version")
        if not isinstance(version, str) or not version:
            raise InternalError("the service's answer is malformed: its pair has no version")
        self.limits, self.served = Limits.of(pair), version
        return pair


class ScoreCall:
    """One call of `score`: read its items, plan its requests, join their answers.

    Raises:
        InvalidItemError: with on_error "fail", an item that is none.
    """

    def __init__(self, core: Core, items: Iterable[Item], options: Options, version: str | None) -> None:
        self._core, self._options, self._version = core, options, version or core.pinned
        self._items, self._refused = read_items(items, options)
        self._explicit = version is not None

    def exchanges(self, in_flight: int) -> list[Exchange[Answer]]:
        """The requests, for a service whose limits are known, `in_flight` of them at once."""
        if self._core.limits is None:
            raise RuntimeError("a call is planned after the service's limits are known")
        plan = make_plan(self._items, self._refused, self._options, self._core.limits, in_flight)
        self._refused = plan.refused
        return [self._exchange(chunk) for chunk in plan.chunks]

    def join(self, answers: Sequence[Answer]) -> Scores:
        """The scores of all items, in the order of the items.

        Raises:
            ModelVersionMismatchError: not all of one version, or of another than was asked for.
        """
        versions = {answer.model_version for answer in answers}
        if len(versions) > 1:
            raise ModelVersionMismatchError("the pair was swapped during the call; score all items again")
        version = next(iter(versions), self._version or self._core.served)
        if version is None or (self._version is not None and version != self._version):
            raise ModelVersionMismatchError(
                "the service answered with another pair version than was asked for"
            )
        if versions and not self._explicit:
            self._core.remember(version)
        scores = [score for answer in answers for score in answer.scores]
        scores += [Score(index, error=error) for index, error in self._refused.items()]
        usage = {name: sum(answer.usage[name] for answer in answers) for name in USAGE}
        return Scores(tuple(sorted(scores, key=lambda score: score.index)), version, usage)

    def _exchange(self, chunk: Chunk) -> Exchange[Answer]:
        return Exchange(
            "POST",
            "/v1/rewards",
            partial(read_rewards, items=chunk.items, options=self._options),
            partial(chunk.body, self._options, self._version),
        )


def _base_url(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidRequestError("base_url must be like http://127.0.0.1:8000", param="base_url")
    return url


def _headers(api_key: str | None) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}
    if api_key is not None:
        if not api_key.isascii() or not api_key.isprintable() or not api_key.strip():
            raise InvalidRequestError("api_key must be printable ASCII", param="api_key")
        headers["Authorization"] = f"Bearer {api_key}"
    return headers


def _read_tokens(response: httpx.Response) -> list[int]:
    tokens = read_json(response).get("tokens")
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise InternalError("the service's answer is malformed: its tokens are not a list of integers")
    return tokens
