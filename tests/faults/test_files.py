"""Files: locks, full disks (row 29 of the table of faults), damaged files (row 28), paths that are wrong.

Two real processes compete for each lock. A limit of the size of files takes the place of a full disk: the
kernel refuses the write in the same place.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from api.running import Running, make_service, pair, running
from densepath import cli
from densepath.demo.method import run_demo
from densepath.engine.fake import FakeScorer
from densepath.errors import InvalidRequestError
from densepath.files import InUseError, reserved_file, write_whole
from densepath.pair.pair import Pair
from densepath.pair.runs import read_sft_run
from densepath.trainer.sft.run import fine_tune
from densepath.trainer.sft.settings import SftSettings
from faults.permissions import like_any_user
from trainer.runs import write_run

__all__ = ["pair"]  # a fixture

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command in this process: its exit status, and what it says without blank lines."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DENSEPATH_PORT", "0")

    def run(*words: str | Path) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["densepath", *map(str, words)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        lines = capsys.readouterr().err.splitlines()
        return int(exit_info.value.code or 0), "\n".join(line for line in lines if line.strip())

    return run


@pytest.fixture(scope="module")
def gated(pair: Pair) -> Iterator[Running]:
    """A service whose engine scores only while its gate is open."""
    with running(make_service(pair, scorer=FakeScorer(64, gate=asyncio.Event()))) as served:
        yield served


@pytest.fixture
def served(gated: Running) -> Running:
    """The same, with the gate open."""
    gated.now(gated.scorer.gate.set)
    return gated


N = 600
DEMONSTRATION = json.dumps({"prompt": "two and two", "response": " is four"}) + "\n"


def write_items(path: Path, count: int = N) -> Path:
    rows = ({"id": f"i{n}", "prompt_token_ids": [1], "response_token_ids": [2 + n % 7]} for n in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def start(*words: str | Path) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "densepath", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until_held(lock: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not (lock.exists() and lock.read_text().startswith(f"{process.pid} ")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)  # between two looks at the condition


# --- two processes ------------------------------------------------------------------------------------------


def test_two_scores_on_one_output(gated: Running, run: Run, tmp_path: Path) -> None:
    source, output = write_items(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    words = ("score", source, "-o", output, "--url", f"http://127.0.0.1:{gated.port}")
    gated.now(gated.scorer.gate.clear)
    first = start(*words)
    until_held(tmp_path / ".out.jsonl.lock", first)
    status, said = run(*words)
    assert status == 1
    sentence = (
        f"error {output} is in use by process {first.pid}: wait until that process ends, or name another"
    )
    assert said.startswith(sentence)
    gated.now(gated.scorer.gate.set)
    said = first.communicate(timeout=60)[0]
    assert (first.returncode, f"{N} scored, 0 failed" in said) == (0, True)
    assert ids(output) == ids(source)
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]

    # A process that is killed holds nothing, and the next one goes on where it stopped.
    output.unlink()
    gated.now(gated.scorer.gate.clear)
    second = start(*words)
    until_held(tmp_path / ".out.jsonl.lock", second)
    second.kill()
    second.communicate()
    gated.now(gated.scorer.gate.set)
    assert run(*words)[0] == 0
    assert ids(output) == ids(source)
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


HOLD = """
import sys
from pathlib import Path
from densepath.files import reserved_directory
with reserved_directory(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(directory: Path) -> Iterator[int]:
    """The number of another process that writes into a directory."""
    command = [sys.executable, "-c", HOLD, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.kill()


def test_a_directory_that_another_process_fills(tmp_path: Path) -> None:
    directory, quiet = tmp_path / "run", Console(quiet=True)
    uses: list[Callable[[], Any]] = [
        lambda: fine_tune(SftSettings(base=tmp_path, demonstrations=tmp_path, run=directory), quiet),
        lambda: run_demo(directory, quiet, quiet),
        lambda: read_sft_run(directory),
    ]
    with held_elsewhere(directory) as pid:
        for use in uses:
            with pytest.raises(InUseError, match=f"run is in use by process {pid}: wait"):
                use()
    with pytest.raises(InvalidRequestError, match="exists: give a new directory"):
        uses[0]()  # that process was killed, and its lock with it


CONTEND = """
import sys
from contextlib import suppress
from pathlib import Path
from densepath.files import InUseError, reserved_file
path, taken = Path(sys.argv[1]), 0
while taken < 300:
    with suppress(InUseError), reserved_file(path):
        with path.open("x"):  # nobody else is inside
            taken += 1
        path.unlink()
"""


def test_only_one_process_is_ever_inside(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CONTEND, str(tmp_path / "out")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert (process.communicate(timeout=60)[1], process.returncode) == ("", 0)
    assert os.listdir(tmp_path) == []


def test_a_lock_of_another_machine_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with reserved_file(tmp_path / "out"):
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        with (
            pytest.raises(InUseError, match=f"process {os.getpid()} on (?!elsewhere)"),
            reserved_file(tmp_path / "out"),
        ):
            pass


FORK = """
import os, socket, sys
from pathlib import Path
from densepath.api.listener import listening
from densepath.files import reserved_file
path, (mine, its) = Path(sys.argv[1]), socket.socketpair()
with reserved_file(path), listening("127.0.0.1", 0) as sockets:
    address = sockets[0].getsockname()
    child = os.fork()
    if child == 0:
        mine.close()  # so that it ends with its parent
        its.send(b"it runs")
        its.recv(1)
        os._exit(0)
    mine.recv(7)
with reserved_file(path), socket.create_server(address):
    pass
mine.send(b"x")
os.waitpid(child, 0)
"""


def test_a_forked_child_keeps_neither_a_lock_nor_a_port(tmp_path: Path) -> None:
    """As the engine's process may be: it can outlive its parent by a moment."""
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert (done.stderr, done.returncode) == ("", 0)


# --- a full disk --------------------------------------------------------------------------------------------


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Inside the block, no file of this process can become larger than so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_row_29_score_on_a_full_disk_goes_on_when_there_is_room(
    served: Running, run: Run, tmp_path: Path, suffix: str
) -> None:
    source, output = write_items(tmp_path / "in.jsonl"), tmp_path / f"out{suffix}"
    words = ("score", source, "-o", output, "--url", f"http://127.0.0.1:{served.port}")
    with files_up_to(100_000):
        status, said = run(*words)
    partial = tmp_path / f"out{suffix}.partial"
    assert (status, said.count("\n")) == (2, 0)
    assert said.startswith(f"error {partial}: the file system, or `ulimit -f`, does not allow a file of this")
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", partial.name]
    before = served.scorer.scored
    status, said = run(*words)
    assert (status, f"{N} scored, 0 failed" in said) == (0, True)
    assert 0 < served.scorer.scored - before < N, "it resumes"
    assert served_ids(output) == ids(source)


def served_ids(output: Path) -> list[str]:
    if output.suffix == ".parquet":
        return list(pq.read_table(output)["id"].to_pylist())
    return ids(output)


def test_row_29_a_full_disk_at_the_end_keeps_every_result(
    served: Running, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = write_items(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    words = ("score", source, "-o", output, "--url", f"http://127.0.0.1:{served.port}")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        status, said = run(*words)
    assert (status, said) == (2, f"error {output}: the disk is full: free some space and try again")
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl.partial"]
    before = served.scorer.scored
    assert run(*words)[0] == 0
    assert served.scorer.scored == before
    assert ids(output) == ids(source)


def test_row_29_a_file_that_does_not_fit_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_whole(path, b"old")
    with files_up_to(1000), pytest.raises(OSError, match="too large") as caught:
        write_whole(path, bytes(5000))
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [path.name]


def test_row_29_sft_on_a_full_disk(run: Run, pair_dirs: tuple[Path, Path], tmp_path: Path) -> None:
    rows, made = tmp_path / "rows.jsonl", tmp_path / "made"
    rows.write_text(DEMONSTRATION * 4)
    words = ("sft", "--base", pair_dirs[0], "--demonstrations", rows, "--run", made, "--batch-size", 2)
    with files_up_to(100_000):
        status, said = run(*words)
    assert status == 2
    errors = [line for line in said.splitlines() if line.startswith("error ")]
    assert [line.partition(": ")[0] for line in errors] == [f"error {made}"]


# --- paths that are wrong -----------------------------------------------------------------------------------

FILE, CHECKPOINT, OUTPUT, DIRECTORY, ANY = "file", "checkpoint", "output", "directory", "any"

#: Of each command: a call that is right, and what each of its paths is.
PATHS: dict[str, tuple[list[str], dict[str, str]]] = {
    "serve": (
        ["--sft", "{sft}", "--reference", "{reference}", "--engine", "fake"],
        {
            "sft": CHECKPOINT,
            "reference": CHECKPOINT,
            "base": ANY,
            "pair": CHECKPOINT,
            "api_key_file": FILE,
            "config": FILE,
        },
    ),
    "check": (
        ["--sft", "{sft}", "--reference", "{reference}"],
        {"sft": CHECKPOINT, "reference": CHECKPOINT, "base": ANY, "pair": CHECKPOINT, "config": FILE},
    ),
    "score": (
        ["{items}", "--output", "{tmp}/scored.jsonl", "--url", "{url}"],
        {
            "source": FILE,
            "output": OUTPUT,
            "sft": ANY,
            "reference": ANY,
            "base": ANY,
            "pair": ANY,
            "config": FILE,
        },
    ),
    "train": (
        ["--sft", "{sft}", "--prompts", "{items}", "--run", "{tmp}/run", "--url", "{url}"],
        {"sft": CHECKPOINT, "prompts": FILE, "held_out": FILE, "run": DIRECTORY, "config": FILE},
    ),
    "sft": (
        ["--base", "{sft}", "--demonstrations", "{demonstrations}", "--run", "{tmp}/run"],
        {
            "base": CHECKPOINT,
            "demonstrations": FILE,
            "validation": FILE,
            "run": DIRECTORY,
            "config": FILE,
        },
    ),
    "probe": (
        ["--sft", "{sft}", "--reference", "{reference}", "--prompts", "{items}"],
        {
            "sft": CHECKPOINT,
            "reference": CHECKPOINT,
            "prompts": FILE,
            "pair": CHECKPOINT,
            "output": OUTPUT,
            "config": FILE,
        },
    ),
    "eval": (
        ["{sft}", "--held-out", "{items}"],
        {
            "checkpoints": CHECKPOINT,
            "held_out": FILE,
            "output": OUTPUT,
            "answers": DIRECTORY,
            "config": FILE,
        },
    ),
    "report": (["{run}"], {"run": CHECKPOINT, "output": DIRECTORY}),
    "demo": ([], {"directory": DIRECTORY}),
}
#: Paths that are given without a flag.
ARGUMENTS = {("score", "source"), ("eval", "checkpoints"), ("report", "run")}
FAULTS = {
    FILE: ("missing", "a directory", "not readable"),
    CHECKPOINT: ("missing", "a file", "not readable"),
    OUTPUT: ("a directory", "in no directory", "in a read-only directory"),
    DIRECTORY: ("a file", "below a file", "in a read-only directory"),
    ANY: (),
}


def make_fault(fault: str, kind: str, tmp_path: Path) -> Path:
    """A path that is wrong in this way."""
    place = tmp_path / "wrong"
    place.mkdir()
    path = place / ("it.jsonl" if kind in (FILE, OUTPUT) else "it")
    if fault in ("a file", "below a file"):
        path.write_text("what was there")
    elif fault == "a directory" or (fault == "not readable" and kind == CHECKPOINT):
        path.mkdir()
    elif fault == "not readable":
        path.write_text("{}\n")
    if fault == "not readable":
        path.chmod(0)
    if fault == "in a read-only directory":
        place.chmod(0o500)
    if fault in ("below a file", "in no directory"):
        path = path / path.name
    return path


def test_every_path_of_every_command_is_in_the_table() -> None:
    found = {}
    for command in cli.app.registered_commands:
        assert command.callback is not None
        hints = get_type_hints(command.callback)
        name = command.name or command.callback.__name__
        found[name] = {option for option, hint in hints.items() if "pathlib" in str(hint)}
    assert found == {command: kinds.keys() for command, (_, kinds) in PATHS.items()}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `densepath train`."""
    return write_run(tmp_path_factory.mktemp("finished") / "run", steps=2)


@pytest.mark.parametrize(
    ("command", "name", "fault"),
    [
        (command, name, fault)
        for command, (_, kinds) in PATHS.items()
        for name, kind in kinds.items()
        for fault in FAULTS[kind]
    ],
)
def test_a_path_that_is_wrong_is_one_sentence(
    command: str,
    name: str,
    fault: str,
    served: Running,
    run: Run,
    pair_dirs: tuple[Path, Path],
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    words, kinds = PATHS[command]
    wrong = make_fault(fault, kinds[name], tmp_path)
    places = {
        "sft": pair_dirs[0],
        "reference": pair_dirs[1],
        "items": write_items(tmp_path / "items.jsonl", 3),
        "demonstrations": tmp_path / "demonstrations.jsonl",
        "url": f"http://127.0.0.1:{served.port}",
        "tmp": tmp_path,
        "run": finished_run,
    }
    places["demonstrations"].write_text(DEMONSTRATION)
    given = [word.format(**places) for word in words]
    if name == "pair":
        given = given[4:]  # instead of --sft and --reference
    flag = f"--{name.replace('_', '-')}"
    if (command, name) in ARGUMENTS:
        given[0] = str(wrong)
    elif flag in given:
        given[given.index(flag) + 1] = str(wrong)
    else:
        given += [flag, str(wrong)]
    with like_any_user():
        status, said = run(command, *given)
    assert status in (1, 2), said
    # A problem of a pair names the model, and not its directory.
    assert str(wrong.parent) in said or said.startswith(
        (f"error not a pair: {name}: ", f"not a pair: {name}: ")
    )
    if said.startswith("error "):
        assert said.count("\n") == 0, said
    if fault in ("a file", "below a file"):
        assert next((tmp_path / "wrong").iterdir()).read_text() == "what was there"


# --- damaged input, and a changed one -----------------------------------------------------------------------


def test_row_28_a_damaged_parquet_file_is_one_sentence(served: Running, run: Run, tmp_path: Path) -> None:
    source, output = tmp_path / "in.parquet", tmp_path / "out.jsonl"
    rows = [json.loads(line) for line in write_items(tmp_path / "in.jsonl").read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), source, write_page_checksum=True, compression="none")
    data = source.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little")
    damaged = {
        "cut": data[: len(data) // 2],
        "empty": b"",
        "text": b"{}\n" * 100,
        "footer": data[: -8 - footer] + b"\xff" * 16 + data[-8 - footer + 16 :],
        "page": data[:200] + bytes([data[200] ^ 1]) + data[201:],
    }
    for name, content in damaged.items():
        source.write_bytes(content)
        status, said = run("score", source, "-o", output, "--url", f"http://127.0.0.1:{served.port}")
        assert (name, status) == (name, 2)
        assert said.startswith(f"error {source} cannot be read as Parquet: "), said
        assert said.count("\n") == 0
        assert not output.exists()
        (tmp_path / "out.jsonl.partial").unlink(missing_ok=True)


# --- the port -----------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(run: Run, tmp_path: Path) -> None:
    nothing = ("--sft", tmp_path / "none", "--reference", tmp_path / "none", "--engine", "fake")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, said = run("serve", *nothing, "--port", str(port))
    assert (status, said) == (
        2,
        f"error --port {port} on 127.0.0.1 is in use: stop the process that listens on it, or give another "
        "port",
    )
    status, said = run("serve", *nothing, "--host", "no-such-host.invalid")
    assert (status, said.count("\n")) == (2, 0)
    assert said.startswith("error --host no-such-host.invalid cannot be resolved (")
    status, said = run("serve", *nothing, "--host", "203.0.113.7")
    assert (status, said.count("\n")) == (2, 0)
    assert said.startswith("error --host 203.0.113.7 is not an address of this machine")


def test_the_port_is_held_while_the_pair_is_loaded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def load(*_: Any) -> None:
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                other.bind(("127.0.0.1", port))
                other.listen()
            except OSError as error:
                seen.append(error.errno)
        raise InvalidRequestError("enough")

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr("densepath.commands.serve.read_pair", load)
    assert run("serve", "--demo", "--port", str(port))[0] == 2
    assert seen == [errno.EADDRINUSE]
    with socket.create_server(("127.0.0.1", port)):
        pass  # it is free again
