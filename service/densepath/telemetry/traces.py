"""A span for each request and each of its stages where a collector is named; elsewhere an empty call.

OpenTelemetry's own variables switch it on and say everything else: there is no option of ours. A span holds
routes, counts and codes, and never what a client sent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType

from densepath.errors import InvalidRequestError

#: Either one switches traces on; the second is of traces alone and holds the whole URL.
VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Span:
    """A span that is nowhere written down."""

    def count(self, **numbers: int) -> None:
        """Say how many of what the stage had: items, tokens, bytes."""

    def answered(
        self, *, method: str, route: str | None, status: int, request_id: str, code: str | None
    ) -> None:
        """Say how the request ended: `code` is the error's, `route` a template and None where none fits."""

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


NO_SPAN = Span()


class Traces:
    """Traces that are off."""

    def request(self, headers: Mapping[str, str]) -> AbstractContextManager[Span]:
        """The span of a whole request; it goes on with the trace that its `traceparent` names."""
        return NO_SPAN

    def stage(self, name: str) -> AbstractContextManager[Span]:
        """The span of a part of the request that is being answered."""
        return NO_SPAN

    def close(self) -> None:
        """Send what is left, for a bounded time."""


def open_traces() -> Traces:
    """The traces that the environment asks for.

    Raises InvalidRequestError where it asks for them and they cannot be had.
    """
    named = [name for name in VARIABLES if os.environ.get(name)]
    if not named:
        return Traces()
    try:
        from densepath.telemetry.otlp import CollectedTraces
    except ModuleNotFoundError as error:
        raise InvalidRequestError(
            f"{named[0]} asks for traces, which need the package {error.name}: install densepath[otel], or "
            "unset the variable"
        ) from error
    try:
        return CollectedTraces.to_collector()
    except ValueError as error:
        raise InvalidRequestError(f"OpenTelemetry refuses a variable of its own: {error}") from error
