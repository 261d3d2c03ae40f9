"""A forked command is what a new interpreter would be, but for the time of its imports."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import forked
from densepath.engine.vllm.environment import cpu_build

pytestmark = pytest.mark.skipif(not cpu_build(), reason="commands are new interpreters")

#: What a process sees of itself.
LOOK = """
import json, os, sys, threading
print("on standard error", file=sys.stderr)
print(json.dumps({
    "argv": sys.argv,
    "main": __name__,
    "path": sys.path,
    "environment": dict(os.environ),
    "directory": os.getcwd(),
    "input": sys.stdin.read(),
    "parent": os.getppid(),
    "session": os.getsid(0) == os.getpid(),
    "threads": threading.active_count(),
    "descriptors": sorted(fd for fd in map(int, os.listdir("/proc/self/fd")) if 2 < fd < 500),
    "densepath": [name for name in sys.modules if name.startswith("densepath")],
}))
"""
HAS_TORCH = "import sys; print('torch' in sys.modules)"


def look(run: Any, *words: str | Path, **options: Any) -> dict[str, Any]:
    done = run([sys.executable, *map(str, words)], input="given", capture_output=True, text=True, **options)
    assert (done.returncode, done.stderr) == (0, "on standard error\n")
    seen: dict[str, Any] = json.loads(done.stdout)
    # The interpreter's own listing of its descriptors is one of them.
    return seen | {"path": [path for path in seen["path"] if path], "descriptors": len(seen["descriptors"])}


@pytest.mark.parametrize("how", ["-c", "-m", "file"])
@pytest.mark.parametrize("new_session", [False, True])
def test_a_process_sees_the_same(how: str, new_session: bool, tmp_path: Path) -> None:
    (tmp_path / "looks.py").write_text(LOOK)
    words: dict[str, list[str | Path]] = {
        "-c": ["-c", LOOK],
        "-m": ["-m", "looks"],
        "file": [tmp_path / "looks.py"],
    }
    options = {
        "cwd": tmp_path,
        "env": os.environ | {"ANSWER": "42", "PYTHONPATH": str(tmp_path / "more")},
        "start_new_session": new_session,
    }
    seen, want = (look(run, *words[how], "one", "two", **options) for run in (forked.run, subprocess.run))
    imports = seen["path"][len(want["path"]) :]  # what the libraries add to the end
    assert all("site-packages" in path for path in imports), imports
    assert seen | {"path": seen["path"][: len(want["path"])]} == want
    assert seen["parent"] == os.getpid()
    assert seen["densepath"] == []


@pytest.fixture(autouse=True, scope="module")
def without_what_imports_set() -> Iterator[None]:
    """The tests of lm_eval set variables when they are imported, and with these nothing is forked."""
    with pytest.MonkeyPatch.context() as patch:
        for name in forked.set_by_imports():
            patch.delenv(name)
        yield


def test_the_imports_are_done() -> None:
    assert forked.run([sys.executable, "-c", HAS_TORCH], capture_output=True, text=True).stdout == "True\n"


def test_what_is_not_buffered() -> None:
    command = [sys.executable, "-u", "-c", f"{HAS_TORCH}; import os; os._exit(0)"]
    assert forked.run(command, capture_output=True, text=True).stdout == "True\n"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("import sys; sys.exit(7)", 7),
        ("import sys; sys.exit('why')", 1),
        ("1 / 0", 1),
        ("import os; os._exit(9)", 9),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
        ("import atexit, os; atexit.register(os._exit, 5)", 5),
        ("import os, threading, time; threading.Thread(target=lambda: os._exit(6)).start()", 6),
    ],
)
def test_exit_statuses(code: str, status: int) -> None:
    for run in (forked.run, subprocess.run):
        assert run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == status


ENDS = "import sys, time; assert 'torch' in sys.modules; time.sleep(600)"
TREE = """
import multiprocessing, subprocess, sys

if __name__ == "__main__":
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
    process = multiprocessing.get_context("spawn").Process(target=exec, args=(sys.argv[1],), daemon=True)
    process.start()
    print(child.pid, process.pid, flush=True)
    child.wait()
"""


def test_what_a_command_starts_is_its_child_and_has_the_imports_too(tmp_path: Path) -> None:
    (tmp_path / "tree.py").write_text(TREE)
    command = [sys.executable, str(tmp_path / "tree.py"), ENDS]
    with forked.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            ids = {int(word) for word in process.stdout.readline().split()}
            started = psutil.Process(process.pid).children()
            assert ids <= {each.pid for each in started}
        finally:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not psutil.wait_procs(started, timeout=30)[1], "its own fork server ends with it"


def test_what_this_process_spawns_has_the_imports_too() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(eval, ("'vllm' in __import__('sys').modules",)) is True


def test_what_a_forked_child_could_not_do_is_a_new_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", HAS_TORCH]
    options: list[dict[str, Any]] = [
        {"env": os.environ | {"HF_HOME": "/elsewhere"}},
        {"preexec_fn": lambda: None},
        {"process_group": 0},
    ]
    for option in options:
        assert forked.run(command, capture_output=True, text=True, **option).stdout == "False\n"
    flag = [sys.executable, "-B", *command[1:]]
    assert forked.run(flag, capture_output=True, text=True).stdout == "False\n"
    assert subprocess.run(command, capture_output=True, text=True).stdout == "False\n", "no own command"


def test_own_commands() -> None:
    script = str(Path(sys.executable).with_name("densepath"))
    assert forked.is_own([script, "serve"])
    assert forked.is_own([sys.executable, "-m", "densepath.verification.oracle", "folder"])
    assert not forked.is_own([sys.executable, "-m", "pytest"])
    assert not forked.is_own([sys.executable, "-c", "import densepath"])
    assert not forked.is_own(["/elsewhere/densepath", "serve"])
    with forked.new_interpreters():
        assert not issubclass(subprocess.Popen, forked.Popen)
    assert issubclass(subprocess.Popen, forked.Popen)
