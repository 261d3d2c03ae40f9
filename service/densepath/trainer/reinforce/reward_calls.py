"""Rewards from the service, over HTTP through the client, while more responses are sampled.

All calls ask for one pair version. If the service does not answer, calls are repeated, after random waits of
limited length. A missing reward is never replaced by a number, and no step is made without it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from threading import Lock
from time import monotonic
from typing import Any, Self

from densepath.client import Client, Score, Scores
from densepath.errors import LateError, ModelVersionMismatchError, UnavailableError
from densepath.trainer.errors import ServiceAwayError, TrainerError

#: Requests at the same time, and the longest wait between two attempts if the service does not answer.
CALLS = 4
LONGEST_WAIT_SECONDS = 30.0

#: Called with a message when the service does not answer, and with None when no call waits any more: once for
#: an outage, however many calls meet it.
OnWait = Callable[[str | None], None]


class RewardCalls:
    """The service at `url`, pinned to the pair version that it serves now. Use it in a `with` block."""

    def __init__(self, url: str, *, api_key: str | None, wait_seconds: float, on_wait: OnWait) -> None:
        self._client = Client(url, api_key=api_key)
        self._wait_seconds, self._on_wait = wait_seconds, on_wait
        self._lock, self._n_waiting = Lock(), 0
        self._threads = ThreadPoolExecutor(CALLS, thread_name_prefix="rewards")
        self._calls: list[tuple[list[int], Future[Scores]]] = []
        self.pair: dict[str, Any] = self._patiently(self._client.pair)
        self._version = str(self.pair["version"])

    def submit(self, index_N: list[int], items_N: list[dict[str, Any]]) -> None:
        """Request the rewards of some responses. `collect` returns them by their `index_N`."""
        self._calls.append((index_N, self._threads.submit(self._patiently, lambda: self._score(items_N))))

    def collect(self) -> dict[int, Score]:
        """The scores of everything submitted since the last call, by index, with log-probabilities."""
        calls, self._calls = self._calls, []
        scores: dict[int, Score] = {}
        try:
            for index_N, call in calls:
                scores |= zip(index_N, call.result(), strict=True)
        except ModelVersionMismatchError as error:
            raise TrainerError(
                f"the service now serves another pair, but this run has rewards of {self._version}: serve "
                "that pair again and repeat the same command, or start another run"
            ) from error
        finally:
            for _, call in calls:
                call.cancel()
        return scores

    def _score(self, items_N: Sequence[dict[str, Any]]) -> Scores:
        return self._client.score(items_N, include=("logprobs",), model_version=self._version)

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """The answer of a call, which is repeated for up to `wait_seconds` until there is one."""
        started = monotonic()
        for n in count():
            try:
                answer = call()
            except (UnavailableError, LateError) as error:
                waited = monotonic() - started
                if waited >= self._wait_seconds:
                    raise ServiceAwayError(
                        f"the service did not answer within {self._wait_seconds:g} s ({error}): start it, "
                        "and repeat the same command to resume from the last checkpoint"
                    ) from error
                if n == 0:
                    self._begin_to_wait(f"the service has not answered for {waited:.0f} s ({error}): waiting")
                bound = min(0.1 * 2 ** min(n, 16), LONGEST_WAIT_SECONDS, self._wait_seconds - waited)
                time.sleep(random.uniform(0, bound))  # noqa: S311
            else:
                if n:
                    self._end_waiting()
                return answer

    def _begin_to_wait(self, words: str) -> None:
        with self._lock:
            self._n_waiting += 1
            if self._n_waiting == 1:
                self._on_wait(words)

    def _end_waiting(self) -> None:
        with self._lock:
            self._n_waiting -= 1
            if self._n_waiting == 0:
                self._on_wait(None)

    def close(self) -> None:
        """Cancel running requests and close the connections."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
