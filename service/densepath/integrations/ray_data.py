"""Rewards as columns of a Ray Dataset, from a service or from actors that each serve the pair themselves.

score(dataset, url)                                             # from a service
score(dataset, pair=("run/final", "run/share-0.50"), actors=8, num_gpus=1)
score_to_parquet(dataset, "scores", url, id_column="id")        # resumes
"""

from __future__ import annotations

import ctypes
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import httpx

from densepath.client import Client, Score, Scores
from densepath.errors import InvalidItemError, InvalidRequestError
from densepath.files import whole_file
from densepath.integrations import IntegrationError
from densepath.integrations.data import FIELDS, items_of

if TYPE_CHECKING:
    from ray.data import Dataset

BATCH_ROWS = 256
#: How long an actor waits for its own service: a large pair is read from a network and verified.
START_SECONDS = 1800.0

_ARRAYS = {
    "rewards": "reward_T",
    "sft_logprobs": "logp_sft_T",
    "reference_logprobs": "logp_reference_T",
    "returns": "return_T",
    "response_token_ids": "response_token_ids",
    "positions": "positions",
}
_INTEGERS = ("response_token_ids", "positions")
_PR_SET_PDEATHSIG = 1

OnError = Literal["raise", "column"]


def score(
    dataset: Dataset,
    url: str | Sequence[str] | None = None,
    *,
    pair: tuple[str | Path, str | Path] | None = None,
    serve_options: Sequence[str] = (),
    actors: int = 1,
    num_gpus: float | None = None,
    include: Sequence[str] = (),
    gamma: float = 1.0,
    append_eos: bool = False,
    on_error: OnError = "raise",
    api_key: str | None = None,
    model_version: str | None = None,
) -> Dataset:
    """The dataset with the scores of its rows, in the order of its rows. It is lazy, as all of Ray Data.

    The input columns are named as the fields of an item. The new columns are `rewards` (float32, one list per
    row), `sum` (float64), `ended`, `model_version` and `error` (null where a row has a score). For texts and
    chats there is also `response_token_ids`, for spans `positions`, and `include` adds `sft_logprobs`,
    `reference_logprobs` and `returns`. All rows are scored by one pair version.

    Args:
        dataset: its context is set to `preserve_order`.
        url: the service, or its replicas.
        pair: instead of `url`, the SFT and the reference directory. Each actor runs `densepath serve` with
            them on its node, so all nodes must see both directories.
        serve_options: further options of that `densepath serve`.
        actors: how many actors score at the same time.
        num_gpus: the GPUs of each actor.
        include: what else to return, from "logprobs" and "returns".
        gamma: the discount of the returns.
        append_eos: for texts and chats, whether a response gets the end-of-sequence token and its reward.
        on_error: "raise" ends the run at the first row that has no score. "column" puts the reason into the
            column `error`, and the row has no number. A service that cannot be reached always ends the run.
        api_key: the API key of the service.
        model_version: the pair version that must score the rows. None: that of `url` or `pair` now.

    Raises:
        InvalidRequestError: not exactly one of `url` and `pair` was given.
        IntegrationError: Ray is not installed.
        InvalidPairError: the two directories are not a pair.
        DensepathError: the service cannot be reached.
    """
    data = _ray_data()
    version = model_version or _version(url, pair, api_key)
    settings = {
        "url": url,
        "command": None if pair is None else _command(pair, serve_options),
        "api_key": api_key,
        "options": {"include": tuple(include), "gamma": gamma, "model_version": version},
        "append_eos": append_eos,
        "on_error": on_error,
    }
    dataset.context.execution_options.preserve_order = True
    return dataset.map_batches(
        _Actor,
        fn_constructor_kwargs=settings,
        batch_size=BATCH_ROWS,
        batch_format="pyarrow",
        compute=data.ActorPoolStrategy(size=actors),
        num_gpus=num_gpus,
        udf_modifying_row_count=False,
    )


def score_to_parquet(
    dataset: Dataset,
    directory: str | Path,
    url: str | Sequence[str] | None = None,
    *,
    id_column: str,
    **options: Any,
) -> None:
    """Write the scored dataset to Parquet files in `directory`. The same call again resumes after a crash.

    A row whose score or error was written is not scored again. `scores.json` in the directory says which pair
    version and options the scores belong to. At the end the number of scores is compared with the number of
    rows. A call that resumes needs 2 CPUs and 1 GiB beside those of the actors, for Ray's own actors.

    Args:
        dataset: read by Ray Data from files. It has the same rows in each call, or more of them.
        directory: local or shared by all nodes.
        url: as for `score`.
        id_column: a column whose values are different in all rows. The scores have it too, so that they can
            be sorted: the files of a call that resumes come in no order.
        options: as for `score`.

    Raises:
        IntegrationError: the directory has scores of another pair version or of other options, or at the end
            there is not exactly one score per row, because ids occur twice or the dataset was changed.
        DensepathError: as for `score`.
    """
    data = _ray_data()
    folder = Path(directory).resolve()
    pair, api_key = options.get("pair"), options.get("api_key")
    version = options.pop("model_version", None) or _version(url, pair, api_key)
    _check_belonging(
        folder / "scores.json",
        {
            "pair version": version,
            "id column": id_column,
            "options": {
                "include": sorted(options.get("include", ())),
                "gamma": options.get("gamma", 1.0),
                "append_eos": options.get("append_eos", False),
            },
        },
    )
    n_rows = dataset.count()
    dataset.context.checkpoint_config = data.checkpoint.CheckpointConfig(
        id_column, str(folder / "checkpoint"), delete_checkpoint_on_success=False
    )
    scored = score(dataset, url, model_version=version, **options)
    scored.write_parquet(str(folder / "scores"))
    n_scores = data.read_parquet(str(folder / "scores")).count()
    if n_scores != n_rows:
        raise IntegrationError(
            f"{folder} has {n_scores} scores for {n_rows} rows: the ids in {id_column} must all be "
            "different, and a call that resumes must be given all rows of the calls before it"
        )


class _Actor:
    """One of the actors: it holds a client, and its own service unless it was given a URL."""

    def __init__(
        self,
        url: str | Sequence[str] | None,
        command: list[str] | None,
        api_key: str | None,
        options: dict[str, Any],
        append_eos: bool,
        on_error: OnError,
    ) -> None:
        if command is not None:
            url = _serve(command)
        assert url is not None  # noqa: S101  # `score` has looked
        self._client = Client(url, api_key=api_key)
        self._options, self._append_eos, self._on_error = options, append_eos, on_error

    def __call__(self, table: Any) -> Any:
        columns = {name: table.column(name).to_pylist() for name in table.column_names if name in FIELDS}
        items = items_of(columns, self._append_eos)
        on_error: Literal["item", "fail"] = "item" if self._on_error == "column" else "fail"
        scores = self._client.score(items, on_error=on_error, **self._options) if items else None
        for name, array in _columns(scores, table.column_names, self._options["include"]).items():
            if name in table.column_names and name != "response_token_ids":
                raise InvalidItemError(f"the dataset has a column {name} already: rename it")
            if name not in table.column_names:
                table = table.append_column(name, array)
        return table


def _columns(scores: Scores | None, given: Sequence[str], include: Sequence[str]) -> dict[str, Any]:
    """The new columns, as arrays of pyarrow. Every batch of a dataset has the same ones."""
    import pyarrow as arrow

    names = ["rewards"]
    names += ["sft_logprobs", "reference_logprobs"] if "logprobs" in include else []
    names += ["returns"] if "returns" in include else []
    names += ["response_token_ids"] if "response" in given else []
    names += ["positions"] if "response_mask" in given else []
    rows: Sequence[Score] = () if scores is None else scores.items
    lists = {
        name: arrow.array(
            [_plain(getattr(row, _ARRAYS[name])) for row in rows],
            arrow.list_(arrow.int64() if name in _INTEGERS else arrow.float32()),
        )
        for name in names
    }
    version = None if scores is None else scores.model_version
    return {
        **lists,
        "sum": arrow.array([None if row.error else row.sum for row in rows], arrow.float64()),
        "ended": arrow.array([None if row.error else row.ended for row in rows], arrow.bool_()),
        "model_version": arrow.array([version] * len(rows), arrow.string()),
        "error": arrow.array([row.error and row.error.message for row in rows], arrow.string()),
    }


def _plain(array_T: Any) -> list[Any] | None:
    return None if array_T is None else array_T.tolist()


def _ray_data() -> Any:
    try:
        import ray.data
        import ray.data.checkpoint
    except ImportError as error:
        raise IntegrationError("this needs Ray Data: pip install 'densepath[ray]'") from error
    return ray.data


def _version(
    url: str | Sequence[str] | None, pair: tuple[str | Path, str | Path] | None, api_key: str | None
) -> str:
    """The version of what scores."""
    if (url is None) == (pair is None):
        raise InvalidRequestError("give either the URL of a service or a pair: its two directories")
    if pair is not None:
        from densepath.pair.pair import load_pair

        return load_pair(*pair).version
    assert url is not None  # noqa: S101
    with Client(url, api_key=api_key) as client:
        return str(client.pair()["version"])


def _check_belonging(path: Path, belonging: dict[str, object]) -> None:
    """Write what the scores of a directory belong to, or compare it with what was written."""
    if path.exists():
        found = json.loads(path.read_text("utf-8"))
        other = [name for name, value in belonging.items() if found.get(name) != value]
        if other:
            raise IntegrationError(
                f"{path.parent} has scores of a different {' and '.join(other)}: give another directory"
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(json.dumps(belonging, indent=1).encode())


def _command(pair: tuple[str | Path, str | Path], serve_options: Sequence[str]) -> list[str]:
    sft, reference = (str(Path(each).resolve()) for each in pair)
    return ["serve", "--sft", sft, "--reference", reference, *serve_options]


def _serve(command: list[str]) -> str:
    """Start this actor's own service, and return its URL once it is ready. It ends with the actor."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    full = [sys.executable, "-m", "densepath", *command, "--host", "127.0.0.1", "--port", str(port)]
    libc = ctypes.CDLL(None)
    started: list[subprocess.Popen[bytes]] = []
    running = threading.Event()

    def attend() -> None:
        # The kernel ends the service when the thread that started it ends, which is with the actor.
        process = subprocess.Popen(  # noqa: S603
            full, preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        )
        started.append(process)
        running.set()
        process.wait()

    threading.Thread(target=attend, name="densepath serve", daemon=True).start()
    running.wait()
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    while time.monotonic() < end and started[0].poll() is None:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return url
        except httpx.RequestError:
            pass
        time.sleep(0.2)
    raise IntegrationError(
        f"densepath serve of this actor did not become ready (exit status {started[0].poll()}): "
        "its last lines are in the log of the actor"
    )
