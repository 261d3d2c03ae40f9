"""What both clients share: which requests to send, how to read answers, and which version is pinned."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import httpx

from densepath.client.answers import USAGE, Answer, read_json, read_rewards
from densepath.client.exchange import MAX_BYTES, Exchange, Reply
from densepath.client.items import Item
from densepath.client.plan import Chunk, Limits, Options, make_plan, read_items
from densepath.client.replicas import Replicas
from densepath.client.results import Score, Scores
from densepath.errors import InternalError, InvalidRequestError, ModelVersionMismatchError
from densepath.wire import JSON_MEDIA_TYPE

#: Seconds for each connect, read and write, and for the wait for a free connection. A deadline shortens them.
TIMEOUT = httpx.Timeout(connect=5, read=300, write=60, pool=300)

#: Seconds that a replica has to say whether it can score.
READY_SECONDS = 10.0

_TOKEN_ID_BYTES = 16  # in JSON, with its comma and space

BATCH_ITEMS = 1024
"""How many items `iter_score` reads, scores and yields together."""

ROUNDS = 3
"""How often a call is sent as a whole, where the pair version changes while it is answered."""

#: Called with two counts: items that are done (refused ones included), and all items.
Progress = Callable[[int, int], None]


class Core:
    """The state of a client, and everything that it does except I/O.

    Raises:
        InvalidRequestError: the base URL or the key cannot be used in a request.
    """

    def __init__(self, base_url: str | Sequence[str], api_key: str | None, pin: bool) -> None:
        self.replicas = Replicas(base_url)
        self.headers = _headers(api_key)
        self.served: str | None = None  # the version that was named when the pair was last asked for
        self.pinned: str | None = None
        self._limits: dict[httpx.URL, Limits] = {}  # of each replica that has answered GET /v1/pair
        self._pin = pin

    @property
    def limits(self) -> Limits | None:
        """The limits of a request, once a replica has answered; the smallest where several have.

        All replicas are assumed to have the same limits, so one answer is enough. If another replica has
        smaller limits and refuses a request, its error is raised.
        """
        return Limits.smallest(self._limits.values()) if self._limits else None

    def pair(self) -> Exchange[dict[str, Any]]:
        """GET /v1/pair. Reading its answer stores the pair's limits and version."""
        return Exchange("GET", "/v1/pair", self.replicas.order(b""), self._read_pair)

    def tokenize(self, text: str, add_special_tokens: bool) -> Exchange[list[int]]:
        """POST /tokenize."""
        body = json.dumps({"prompt": text, "add_special_tokens": add_special_tokens}).encode()
        order = self.replicas.order(body)
        most = MAX_BYTES + _TOKEN_ID_BYTES * len(body)  # no tokenizer makes more tokens than there are bytes
        return Exchange("POST", "/tokenize", order, _read_tokens, lambda: (JSON_MEDIA_TYPE, body), most)

    def batches(
        self, items: Iterable[Item], options: Options, version: str | None
    ) -> Iterator[Callable[[], ScoreCall]]:
        """For each batch of one `iter_score`, a function that makes its call. All use one pair version."""
        pinned = version or self.pinned or self.served
        if version is None and pinned is not None:
            self.remember(pinned)
        rest, first = iter(items), 0
        while batch := list(islice(rest, BATCH_ITEMS)):
            yield partial(ScoreCall, self, batch, options, pinned, first=first)
            first += len(batch)

    def remember(self, version: str) -> None:
        """Pin the version of the first answer if this client was made with `pin`."""
        if self._pin and self.pinned is None:
            self.pinned = version

    def _read_pair(self, response: Reply) -> dict[str, Any]:
        pair = read_json(response)
        version = pair.get("version")
        if not isinstance(version, str) or not version:
            raise InternalError("the service's answer is malformed: its pair has no version")
        self._limits[response.url] = Limits.of(pair)
        self.served = version
        return pair


class ScoreCall:
    """One call of `score`: reads its items, numbered from `first`, plans its requests and joins the answers.

    Raises:
        InvalidItemError: an item is invalid, and on_error is "fail".
    """

    def __init__(
        self,
        core: Core,
        items: Iterable[Item],
        options: Options,
        version: str | None,
        progress: Progress | None = None,
        first: int = 0,
    ) -> None:
        self._core, self._options, self._version = core, options, version or core.pinned
        self._items, self._refused = read_items(items, options, first)
        self._explicit = version is not None
        self._progress, self._total = progress, len(self._items) + len(self._refused)
        self._chunks: Sequence[Chunk] = ()
        self._answers: list[tuple[Chunk, Answer]] = []
        self._again = False
        self._rounds = 1

    def chunks(self, in_flight: int) -> Sequence[Chunk]:
        """What is sent in a request each, `in_flight` at a time at a replica. The limits must be known."""
        plan = make_plan(
            self._items, self._refused, self._options, self._limits, self._core.replicas, in_flight
        )
        self._refused, self._chunks = plan.refused, plan.chunks
        self._tell()
        return plan.chunks

    def exchange(self, chunk: Chunk) -> Exchange[Answer]:
        """The request of a chunk."""
        return Exchange(
            "POST",
            "/v1/rewards",
            chunk.replicas,
            partial(read_rewards, items=chunk.items, options=self._options),
            partial(chunk.body, self._options, self._version),
            chunk.max_answer_bytes(self._options, self._limits),
            scores=True,
            again=self._again,
        )

    def add(self, chunk: Chunk, answer: Answer) -> None:
        """Store the answer of one request."""
        self._answers.append((chunk, answer))
        self._tell()

    def again(self) -> Sequence[Chunk]:
        """The chunks to send once more, where the answers come from two pair versions.

        The pair was swapped during the call, or one replica has been updated before another. All are asked
        for the version of the last answer then, because that is the one that was served last.
        """
        if self._version is not None or len({answer.model_version for _, answer in self._answers}) < 2:
            return ()
        self._again, self._version = True, self._answers[-1][1].model_version
        others = [chunk for chunk, answer in self._answers if answer.model_version != self._version]
        self._answers = [each for each in self._answers if each[1].model_version == self._version]
        return others

    def start_over(self, error: ModelVersionMismatchError) -> Sequence[Chunk]:
        """All chunks, where the version that `again` has asked for is gone. Raises the error otherwise."""
        if self._explicit or not self._again or self._rounds == ROUNDS:
            raise error
        self._rounds += 1
        self._version, self._answers = None, []
        return self._chunks

    def join(self) -> Scores:
        """The scores of all items, in the order of the items, once every request is answered.

        Raises:
            ModelVersionMismatchError: the answers have different versions, or not the requested one.
        """
        answers = [answer for _, answer in self._answers]
        versions = {answer.model_version for answer in answers}
        if len(versions) > 1:
            raise ModelVersionMismatchError(
                "the answers of this call come from two pair versions, although one was asked for"
            )
        version = next(iter(versions), self._version or self._core.served)
        if version is None or (self._version is not None and version != self._version):
            raise ModelVersionMismatchError(
                "the service answered with another pair version than the requested one"
            )
        if versions and not self._explicit:
            self._core.remember(version)
        scores = [score for answer in answers for score in answer.scores]
        scores += [Score(index, error=error) for index, error in self._refused.items()]
        usage = {name: sum(answer.usage[name] for answer in answers) for name in USAGE}
        return Scores(tuple(sorted(scores, key=lambda score: score.index)), version, usage)

    def _tell(self) -> None:
        if self._progress is not None:
            done = len(self._refused) + sum(len(answer.scores) for _, answer in self._answers)
            if not self._again:  # what is sent once more was counted
                self._progress(done, self._total)

    @property
    def _limits(self) -> Limits:
        if self._core.limits is None:
            raise RuntimeError("a call can only be planned once the service's limits are known")
        return self._core.limits


def _headers(api_key: str | None) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}
    if api_key is not None:
        if not api_key.isascii() or not api_key.isprintable() or not api_key.strip():
            raise InvalidRequestError("api_key must be printable ASCII", param="api_key")
        headers["Authorization"] = f"Bearer {api_key}"
    return headers


def _read_tokens(response: Reply) -> list[int]:
    tokens = read_json(response).get("tokens")
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise InternalError("the service's answer is malformed: its tokens are not a list of integers")
    return tokens
