"""The synchronous client."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from densepath.client.core import READY_SECONDS, TIMEOUT, Core, Progress, ScoreCall
from densepath.client.exchange import Exchange, Incoming, Reply
from densepath.client.items import Item
from densepath.client.network import keep_deadlines, within
from densepath.client.patience import Patience
from densepath.client.plan import OnError, Options
from densepath.client.replicas import Replica
from densepath.client.results import Score, Scores
from densepath.client.retry import Sending
from densepath.errors import ModelVersionMismatchError

T = TypeVar("T")


class Client:
    """A client of the service at `base_url`, for one thread or many. Close it, or use it in a `with`.

    `base_url` may be several URLs of replicas that serve the same pair with the same limits. Each prompt goes
    to one of them, where its rollouts find its prefix cached. When a replica fails, its requests go to the
    next one, and the failed replica is skipped for a while.

    With `pin`, all later requests ask for the pair version of the first answer. If the service then holds
    another pair, `score` raises ModelVersionMismatchError. `timeout` limits each connect, read, write and
    wait for a free connection, in seconds.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        *,
        api_key: str | None = None,
        pin: bool = False,
        timeout: httpx.Timeout = TIMEOUT,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._core = Core(base_url, api_key, pin)
        self._http = httpx.Client(headers=self._core.headers, timeout=timeout, transport=transport)
        keep_deadlines(self._http)

    def score(
        self,
        items: Iterable[Item],
        *,
        include: Sequence[str] = (),
        gamma: float = 1.0,
        on_error: OnError = "fail",
        model_version: str | None = None,
        deadline: float | None = None,
        progress: Progress | None = None,
    ) -> Scores:
        """The rewards of the items, in the order of the items, all from one pair version.

        An item is a dict in one of four forms, with an optional `id`: `prompt_token_ids` and
        `response_token_ids`; `token_ids` and `response_mask`; `prompt` and `response`; `messages` and
        `response` (the last two may have `append_eos`). Token ids are lists of ints, integer arrays or
        torch tensors. There may be any number of items: the requests stay within the service's limits.

        While a service fails, requests to it wait, and one at a time tries again. All clients of a process
        share this, and a budget of retries for each service: 32, plus one for every 10 requests, plus one for
        every second. The start and the end of an outage are logged by the logger `densepath.client`.

        Args:
            items: at least one.
            include: what else to return, from "logprobs", "returns" and "tokens".
            gamma: the discount of the returns, 0 to 1.
            on_error: "fail" raises the error of the first bad item; "item" puts it in that item's `Score`.
            model_version: refuse any other pair version. It has precedence over a pinned version.
            deadline: seconds for the whole call, retries included. It holds whatever the service does. None:
                no limit, but a request gives up after 6 failures of its service (of each replica).
            progress: called with the number of items that are done and the number of all items, at the start
                and after each answer.

        Raises:
            DensepathError: the class that belongs to the error's code. `param` names the place: `items[3]`.
            DeadlineExceededError: there was no answer within the deadline.
            UnavailableError: there is no connection, or the retry budget is spent. A subclass is raised if
                the service cannot answer now.
            ModelVersionMismatchError: no replica has the pair version that was asked for. A call that met two
                versions sends again what one of them scored. It fails if they keep changing.
            InternalError: an answer is inconsistent.
        """
        patience = Patience(deadline)
        options = Options(tuple(include), gamma, on_error)
        call = ScoreCall(self._core, items, options, model_version, progress)
        if self._core.limits is None:
            self._send(self._core.pair(), patience)
        return self._finish(call, patience)

    def iter_score(
        self,
        items: Iterable[Item],
        *,
        include: Sequence[str] = (),
        gamma: float = 1.0,
        on_error: OnError = "fail",
        model_version: str | None = None,
        deadline: float | None = None,
    ) -> Iterator[Score]:
        """As `score`, for items that do not fit in memory. Yields scores in order, all from one pair version.

        At most 1024 items are read ahead of the score that is yielded, and they are scored as one batch. The
        error of a batch is raised where its first score would be yielded.

        Args:
            items: read as they are needed.
            include: as in `score`.
            gamma: as in `score`.
            on_error: as in `score`.
            model_version: refuse any other pair version. None: the pinned one, or that served at the start.
            deadline: seconds for each batch of 1024 items, retries included.

        Raises:
            ModelVersionMismatchError: the pair was swapped before the end.
            DensepathError: as `score` does.
        """
        options = Options(tuple(include), gamma, on_error)
        self._send(self._core.pair(), Patience(deadline))
        for batch in self._core.batches(items, options, model_version):
            yield from self._finish(batch(), Patience(deadline))

    def pair(self) -> dict[str, Any]:
        """The answer of `GET /v1/pair`, which describes the served pair: `version`, `limits` and more."""
        return self._send(self._core.pair(), Patience(None))

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text, from the pair's tokenizer."""
        return self._send(self._core.tokenize(text, add_special_tokens), Patience(None))

    def ready(self) -> bool:
        """Whether at least one replica can be reached and can score now. Each is asked once."""
        return any(map(self._is_ready, self._core.replicas))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _is_ready(self, replica: Replica) -> bool:
        try:
            url, timeout = f"{replica.url}/readyz", Patience(READY_SECONDS).timeout(self._http.timeout)
            with within(READY_SECONDS), self._http.stream("GET", url, timeout=timeout) as response:
                return response.status_code == 200
        except httpx.RequestError:
            return False

    def _finish(self, call: ScoreCall, patience: Patience) -> Scores:
        chunks = call.chunks(in_flight=1)
        while chunks:
            try:
                for chunk in chunks:
                    call.add(chunk, self._send(call.exchange(chunk), patience))
                chunks = call.again()
            except ModelVersionMismatchError as error:
                chunks = call.start_over(error)
        return call.join()

    def _send(self, exchange: Exchange[T], patience: Patience) -> T:
        sending = Sending(exchange, patience)
        while True:
            while wait := sending.wait():
                time.sleep(wait)
            with sending.attempt(self._http.timeout) as request:
                return exchange.read(self._receive(request, exchange, patience))

    def _receive(self, request: dict[str, Any], exchange: Exchange[Any], patience: Patience) -> Reply:
        with within(patience.left()), self._http.stream(**request) as response:
            incoming = Incoming(response, exchange, patience)
            for part in response.iter_bytes():
                incoming.add(part)
            return incoming.whole()
