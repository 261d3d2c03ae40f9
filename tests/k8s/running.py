"""A container's own command, variables and files as a plain process: `root` stands for its file system."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

import forked
from k8s.manifests import container, find, pod, settings
from live import free_port

PODS = 2


def locally(text: str, root: Path) -> str:
    """Absolute paths of a container, under `root`."""
    return re.sub(r"(?<![\w/.:])/(?=\w)", f"{root}/", text)


def variables(overlay: str, root: Path) -> dict[str, str]:
    """What the container's ConfigMap sets."""
    return {name: locally(value, root) for name, value in settings(overlay).items()}


def place(overlay: str, volume: str, root: Path) -> Path:
    """Where a volume is mounted; the directory is made."""
    (mount,) = (each for each in container(overlay)["volumeMounts"] if each["name"] == volume)
    path = Path(locally(mount["mountPath"], root))
    path.mkdir(parents=True, exist_ok=True)
    return path


def arguments(overlay: str, root: Path, index: int = 0) -> list[str]:
    """The container's words; Kubernetes puts the pod's index in the place of its variable."""
    one = container(overlay)
    words = [*one.get("command", []), *one["args"]]
    return [locally(word, root).replace("$(JOB_COMPLETION_INDEX)", str(index)) for word in words]


@dataclass(frozen=True)
class Pod:
    """One of the Job's."""

    process: subprocess.Popen[bytes]
    log: Path

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text()[-3000:]

    def kill(self) -> None:
        """As a node that is lost: the workers of torchrun die with it."""
        if self.process.poll() is None:
            for each in psutil.Process(self.process.pid).children(recursive=True):
                each.kill()
            self.process.kill()
        self.process.wait()


@contextmanager
def job(root: Path, key: str, url: str, **more: str) -> Iterator[list[Pod]]:
    """The trainer's pods on this machine, one process each, started; none is left at the end."""
    (volume,) = (each for each in pod("trainer")["volumes"] if each["name"] == "launch")
    files = find("trainer", "ConfigMap", volume["configMap"]["name"])["data"]
    for name, text in files.items():
        (place("trainer", "launch", root) / name).write_text(text)
    (place("trainer", "key", root) / "key.toml").write_text(f'api_key = "{key}"\n')
    here = {
        "--nproc-per-node": "1",
        "--master-addr": "127.0.0.1",
        "--master-port": str(free_port()),
    }
    given = {"DENSEPATH_URL": url, "DENSEPATH_METRICS_PORT": "0", "OMP_NUM_THREADS": "1"}
    environment = os.environ | variables("trainer", root) | given | more
    pods: list[Pod] = []
    try:
        for index in range(PODS):
            program, *words = arguments("trainer", root, index)
            assert program == "python"
            options = [word.split("=")[0] for word in words]
            assert here.keys() <= set(options)
            changed = [
                f"{option}={here[option]}" if option in here else word
                for option, word in zip(options, words, strict=True)
            ]
            log = root / f"pod-{index}.log"
            with log.open("wb") as output:
                process = forked.Popen(
                    [sys.executable, *changed], env=environment, stdout=output, stderr=output
                )
            pods.append(Pod(process, log))
        yield pods
    finally:
        for each in pods:
            each.kill()
