"""The client for ordinary code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import stamina

from densepath.client.core import TIMEOUT, Core, Exchange, ScoreCall
from densepath.client.items import Item
from densepath.client.plan import OnError, Options
from densepath.client.results import Scores
from densepath.client.retry import Backoff, Deadline, connection_errors
from densepath.errors import UnavailableError

T = TypeVar("T")


class Client:
    """A service at `base_url`, used from one thread or many. Close it, or use it in a `with`.

    With `pin`, the pair version of the first answer is asked for ever after: once the service holds another
    pair, `score` raises ModelVersionMismatchError. `timeout` bounds each connect, read, write and wait for
    a free connection in seconds.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        pin: bool = False,
        timeout: httpx.Timeout = TIMEOUT,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._core = Core(base_url, api_key, pin)
        self._http = httpx.Client(
            base_url=self._core.base_url, headers=self._core.headers, timeout=timeout, transport=transport
        )

    def score(
        self,
        items: Iterable[Item],
        *,
        include: Sequence[str] = (),
        gamma: float = 1.0,
        on_error: OnError = "fail",
        model_version: str | None = None,
        deadline: float | None = None,
    ) -> Scores:
        """The rewards of the items, in their order, all from one pair version.

        An item is a dict of one of four forms, with an optional `id`: `prompt_token_ids` and
        `response_token_ids`; `token_ids` and `response_mask`; `prompt` and `response`; `messages` and
        `response` (the last two may have `append_eos`). Token ids are lists of ints or integer arrays.
        However many items there are, the requests stay within the service's limits.

        Args:
            items: at least one.
            include: of "logprobs", "returns" and "tokens", what else to bring back.
            gamma: of the returns, 0 to 1.
            on_error: "fail" raises the error of the first bad item; "item" puts it in that item's `Score`.
            model_version: refuse any other pair version; wins over a pinned one.
            deadline: seconds for the whole call with its retries. None: no limit, and 6 attempts a request.

        Raises:
            DensepathError: the class of the contract's code; `param` names the place, as in `items[3]`.
            DeadlineExceededError: no answer within the deadline.
            UnavailableError: no connection, or one of its subclasses for "not now".
            ModelVersionMismatchError: another pair version, or two of them within the call.
            InternalError: an answer that does not hold together.
        """
        until = Deadline(deadline)
        call = ScoreCall(self._core, items, Options(tuple(include), gamma, on_error), model_version)
        if self._core.limits is None:
            self._send(self._core.pair(), until)
        return call.join([self._send(exchange, until) for exchange in call.exchanges(in_flight=1)])

    def pair(self) -> dict[str, Any]:
        """The served pair, as `GET /v1/pair` answers: `version`, `context_length`, `limits` and more."""
        return self._send(self._core.pair(), Deadline(None))

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids that the pair's tokenizer makes of a text."""
        return self._send(self._core.tokenize(text, add_special_tokens), Deadline(None))

    def ready(self) -> bool:
        """Whether the service can be reached and can score now; one attempt."""
        try:
            with connection_errors(Deadline(None)):
                return self._http.get("/readyz").status_code == 200
        except UnavailableError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, exchange: Exchange[T], deadline: Deadline) -> T:
        headers, content = exchange.content()
        for attempt in stamina.retry_context(Backoff(deadline), attempts=deadline.attempts, timeout=None):
            with attempt:
                with connection_errors(deadline):
                    response = self._http.request(
                        exchange.method,
                        exchange.path,
                        content=content,
                        headers=headers | deadline.headers(),
                        timeout=deadline.timeout(self._http.timeout),
                    )
                return exchange.read(response)
        raise AssertionError("the last attempt returns or raises")
