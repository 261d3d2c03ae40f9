"""The synchronous client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import stamina

from densepath.client.core import TIMEOUT, Core, Progress, ScoreCall
from densepath.client.exchange import Exchange
from densepath.client.items import Item
from densepath.client.patience import Patience
from densepath.client.plan import OnError, Options
from densepath.client.replicas import Replica
from densepath.client.results import Score, Scores
from densepath.client.retry import Sending

T = TypeVar("T")


class Client:
    """A service at `base_url`, used from one thread or many. Close it, or use it in a `with`.

    `base_url` may be several URLs, of replicas that serve one pair with the same limits. Each prompt goes to
    one of them, where its rollouts find its prefix cached; when a replica fails, its requests go to the
    next, and it is passed over for a while.

    With `pin`, the pair version of the first answer is asked for ever after: once the service holds another
    pair, `score` raises ModelVersionMismatchError. `timeout` bounds each connect, read, write and wait for
    a free connection in seconds.
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
        """The rewards of the items, in their order, all from one pair version.

        An item is a dict of one of four forms, with an optional `id`: `prompt_token_ids` and
        `response_token_ids`; `token_ids` and `response_mask`; `prompt` and `response`; `messages` and
        `response` (the last two may have `append_eos`). Token ids are lists of ints, integer arrays or
        torch tensors. However many items there are, the requests stay within the service's limits, and
        what is sent again stays within a budget: 32 retries, one more for every 5 requests and for every
        second.

        Args:
            items: at least one.
            include: of "logprobs", "returns" and "tokens", what else to bring back.
            gamma: of the returns, 0 to 1.
            on_error: "fail" raises the error of the first bad item; "item" puts it in that item's `Score`.
            model_version: refuse any other pair version; wins over a pinned one.
            deadline: seconds for the whole call with its retries. None: no limit, and 6 attempts a request,
                those not counted that follow at once at another replica.
            progress: called with the items that are done and all items, at the start and as answers come.

        Raises:
            DensepathError: the class of the contract's code; `param` names the place, as in `items[3]`.
            DeadlineExceededError: no answer within the deadline.
            UnavailableError: no connection, or the retry budget is spent, or one of its subclasses for
                "not now".
            ModelVersionMismatchError: another pair version, or two of them within the call.
            InternalError: an answer that does not hold together.
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
        """As `score`, for items that do not fit in memory: yields their scores in order, all of one version.

        At most 1024 items are read ahead of the score that is yielded. What fails raises when the first
        score of the 1024 items around it would be yielded.

        Args:
            items: read as they are needed.
            include: as in `score`, as are gamma and on_error.
            gamma: of the returns.
            on_error: "fail" or "item".
            model_version: refuse any other pair version. None: the one that is pinned, or served at first.
            deadline: seconds for each 1024 items, with their retries.

        Raises:
            ModelVersionMismatchError: the pair was swapped before the end.
            DensepathError: as `score` does.
        """
        options = Options(tuple(include), gamma, on_error)
        self._send(self._core.pair(), Patience(deadline))
        for batch in self._core.batches(items, options, model_version):
            yield from self._finish(batch(), Patience(deadline))

    def pair(self) -> dict[str, Any]:
        """The served pair, as `GET /v1/pair` answers: `version`, `context_length`, `limits` and more."""
        return self._send(self._core.pair(), Patience(None))

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids that the pair's tokenizer makes of a text."""
        return self._send(self._core.tokenize(text, add_special_tokens), Patience(None))

    def ready(self) -> bool:
        """Whether a replica can be reached and can score now; one attempt at each."""
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
            return self._http.get(f"{replica.url}/readyz").status_code == 200
        except httpx.RequestError:
            return False

    def _finish(self, call: ScoreCall, patience: Patience) -> Scores:
        for exchange in call.exchanges(in_flight=1):
            call.add(self._send(exchange, patience))
        return call.join()

    def _send(self, exchange: Exchange[T], patience: Patience) -> T:
        sending = Sending(exchange, patience)
        for attempt in stamina.retry_context(sending, attempts=None, timeout=None):
            with attempt, sending.attempt(self._http.timeout) as request:
                return exchange.read(self._http.request(**request))
        raise AssertionError("the last attempt returns or raises")
