"""Two real processes compete for a file, a directory or a port: one writes, and the other one names it."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from api.running import Running, pair
from densepath.demo.method import run_demo
from densepath.errors import InvalidRequestError
from densepath.files import InUseError, reserved_file
from densepath.pair.runs import read_sft_run
from densepath.trainer.sft.run import fine_tune
from densepath.trainer.sft.settings import SftSettings
from faults.commands import N, Run, gated, ids, run, served, write_items

__all__ = ["gated", "pair", "run", "served"]  # fixtures


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
