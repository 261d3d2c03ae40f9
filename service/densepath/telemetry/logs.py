"""Log lines: one JSON object each, on standard error. Prompts, tokens and keys are never in them."""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from typing import TextIO

import structlog

#: Lines of one event in one second. What is over that is counted and dropped.
MOST_LINES, MOST_WARNINGS = 1000, 20


def configure_logs(level: int = logging.INFO) -> None:
    """JSON lines with a time stamp; control characters are escaped by JSON itself.

    Warnings and errors that libraries log become such lines too. All lines are written through `logging`, so
    that a line that cannot be written never makes a request fail.
    """
    before: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = UnhurriedHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("densepath").setLevel(level)


class UnhurriedHandler(logging.Handler):
    """Writes lines to a stream, and never waits for its reader.

    If the pipe is full or closed, or if one event has too many lines in a second, lines are dropped. The next
    line then says how many.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._second, self._lines = 0, Counter[str]()
        self._dropped, self._cut = 0, False
        try:
            self._descriptor: int | None = stream.fileno()
        except (OSError, ValueError):  # a stream in memory, or a closed one
            self._descriptor = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, or drop it."""
        try:
            if self._too_many(record) or not self._write(self.format(record)):
                self._dropped += 1
        except Exception:  # a line that can't be written fails nothing
            self._dropped += 1

    def _too_many(self, record: logging.LogRecord) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second = second
            self._lines.clear()
            if self._dropped:
                self._say_dropped()
        event = record.msg.get("event", "") if isinstance(record.msg, dict) else record.msg
        key = f"{record.name} {str(event)[:200]}"
        self._lines[key] += 1
        return self._lines[key] > (MOST_WARNINGS if record.levelno >= logging.WARNING else MOST_LINES)

    def _say_dropped(self) -> None:
        said = {
            "event": "log_lines_dropped",
            "count": self._dropped,
            "level": "warning",
            "timestamp": datetime.now(UTC).isoformat(),
        }
        if self._write(json.dumps(said)):
            self._dropped = 0

    def _write(self, line: str) -> bool:
        """Whether the whole line was written. One that was cut off ends before the next one begins."""
        if self._descriptor is None:
            self._stream.write(line + "\n")
            self._stream.flush()
            return True
        data = memoryview(("\n" * self._cut + line + "\n").encode())
        while data:
            if not self._writable():
                return False
            # A pipe that is writable takes this much without waiting.
            written = os.write(self._descriptor, data[: select.PIPE_BUF])
            data = data[written:]
            self._cut = bool(data)
        return True

    def _writable(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor or 0, select.POLLOUT)
        return any(event & select.POLLOUT for _, event in poll.poll(0))
