"""Why an engine could not start: one sentence with vLLM's own reason, taken from vLLM's processes.

While the engine starts and is verified, vLLM's errors go to a file that all of its processes know, and not to
their standard error. The service reads the reason from this file. When the engine is ready, the file is
removed and vLLM logs as usual, so the errors of an engine that dies later are in the log.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from densepath.errors import EngineStartError, InvalidPairError

#: Names the file, in the processes of an engine that a service starts.
FILE = "DENSEPATH_ENGINE_REASONS"
#: With these words vLLM reports that another process has failed. The reason is what that process reported.
ELSEWHERE = (
    "Engine core initialization failed",
    "WorkerProc initialization failed",
    "EngineDeadError",
)
#: The messages of these exceptions are whole sentences. Any other exception is reported with its type.
IN_WORDS = (
    "AssertionError",
    "Exception",
    "NotImplementedError",
    "RuntimeError",
    "ValueError",
    "VLLMValidationError",
    "ValidationError",
)
LONGEST = 800  # characters of a reason


def reason_of(error: BaseException) -> str:
    """An exception in one line: its own message, or the line of code that failed if it has no message."""
    error = getattr(error, "cause", None) or error  # Ray wraps what its workers raise
    kind = type(error).__name__
    details = getattr(error, "errors", None)
    if kind == "ValidationError" and callable(details):  # pydantic's, whose text repeats every argument
        words = "; ".join(str(each["msg"]).removeprefix("Value error, ") for each in details())
    else:
        words = str(error)
    for list_of_names in (" Supported architectures: ", " The available parameters "):  # hundreds
        words = words.partition(list_of_names)[0]
    if not words:
        frames = traceback.extract_tb(error.__traceback__)
        words = f"{kind}: {(frames[-1].line if frames else '') or 'no message'}"
    elif kind not in IN_WORDS:
        words = f"{kind}: {words}"
    words = " ".join(words.split())
    if len(words) > LONGEST:
        words = words[:LONGEST] + "…"
    return words


#: Exceptions that this process has recorded. One may be raised again after the service and its file are gone.
_kept: list[BaseException] = []


def record(error: BaseException) -> bool:
    """Write the reason to the service's file. Returns False if no engine is starting."""
    if any(error is kept for kept in _kept):
        return True
    try:
        with open(os.environ[FILE], "r+", encoding="utf-8") as file:  # it must exist: "r+" creates none
            file.seek(0, os.SEEK_END)
            file.write(json.dumps(reason_of(error)) + "\n")
    except (KeyError, OSError):
        return False
    _kept.append(error)
    return True


class WhileStarting(logging.Filter):
    """Keeps vLLM's errors out of the log while the engine starts, and records them for the service."""

    def filter(self, log_record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        if log_record.levelno < logging.ERROR or not os.path.exists(os.environ.get(FILE, "")):
            return True
        error = log_record.exc_info[1] if log_record.exc_info else None
        if error is not None:
            record(error)
        return False


def filter_logs() -> None:
    """Add the filter to vLLM's handlers in this process: to the existing ones, and to those made later."""
    from vllm.logger import DEFAULT_LOGGING_CONFIG

    if FILE not in os.environ:
        return
    DEFAULT_LOGGING_CONFIG.setdefault("filters", {})["densepath"] = {"()": WhileStarting}
    DEFAULT_LOGGING_CONFIG["handlers"]["vllm"]["filters"] = ["densepath"]
    for handler in logging.getLogger("vllm").handlers:
        if not any(isinstance(each, WhileStarting) for each in handler.filters):
            handler.addFilter(WhileStarting())


@contextmanager
def reasons() -> Iterator[None]:
    """A block for the start of an engine, or for its verification, which contains the start.

    Raises EngineStartError with the reason if the start fails, or if the engine dies while it scores a probe.
    """
    if FILE in os.environ:  # the start, within the verification
        yield
        return
    handle, name = tempfile.mkstemp(prefix="densepath-engine-", suffix=".jsonl")
    os.close(handle)
    os.environ[FILE] = name
    try:
        filter_logs()
        yield
    except InvalidPairError as error:  # the verdict
        if reason := _recorded(Path(name)):
            raise EngineStartError(f"the engine cannot run this pair: {reason}") from error
        raise
    except Exception as error:
        raise EngineStartError(f"the engine cannot start: {_first(Path(name), error)}") from error
    finally:
        forget()


def forget() -> None:
    """Remove the file, if there is one. From now on vLLM logs as usual."""
    with suppress(KeyError, OSError):
        os.unlink(os.environ.pop(FILE))


def _recorded(file: Path) -> str | None:
    """The first line that is a reason. A failing process writes it before the processes that wait for it."""
    with suppress(OSError):
        for line in file.read_text(encoding="utf-8").splitlines():
            words = str(json.loads(line))
            if not words.startswith(ELSEWHERE):
                return words
    return None


def _first(file: Path, error: Exception) -> str:
    """The recorded reason, or what the error itself says."""
    if reason := _recorded(file):
        return reason
    words = reason_of(error)
    if not words.startswith(ELSEWHERE):
        return words
    ended = re.search(r"'EngineCore\w*': (-?\d+)", words)
    status = int(ended[1]) if ended else 0
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else "ended without a reason"
    return f"one of its processes {how} while it loaded the pair: most likely, memory ran out"
