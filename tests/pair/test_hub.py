"""Checkpoints of the hub, from a hub on loopback: downloaded, resumed, pinned, offline, or refused."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import _tree_cache, constants, file_download
from huggingface_hub.utils import _detect_agent, enable_progress_bars, logging
from rich.console import Console
from safetensors.torch import save

from densepath import cli
from densepath.commands.pairs import directories
from densepath.commands.settings import ServeSettings
from densepath.errors import InvalidRequestError
from densepath.pair.adapters import whole_checkpoint
from densepath.pair.hub import located, source_name
from densepath.pair.pair import Pair, load_pair
from docs.blocks import blocks, split_commands
from loopback_hub import Hub, running

WEIGHTS = bytes(range(256)) * 4000
#: Bytes after which the library has kept what it was sent.
CHUNK = 1 << 16
WANTED = {
    "config.json": b"{}",
    "tokenizer.json": b"{ }",
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tool.jinja": b"{{ tools }}",
    "tokenizer.model": b"pieces",
    "merges.txt": b"a b",
    "model.safetensors": WEIGHTS,
}
UNWANTED = {
    "README.md": b"# model",
    "pytorch_model.bin": b"pickle",
    "training_args.bin": b"pickle",
    "modeling_model.py": b"raise SystemExit",
    "consolidated.safetensors": b"the weights again",
    "onnx/config.json": b"{}",
    "checkpoint-5/model.safetensors": b"other weights",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process uses, with an empty cache and no token."""
    logging.set_verbosity_error()
    with running(Hub()) as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(_detect_agent, "_registry", {"standardEnvVars": [], "harnesses": {}})
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
        monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield hub
    logging.set_verbosity_warning()
    enable_progress_bars()


@pytest.fixture
def said() -> list[str]:
    return []


def read(directory: Path) -> dict[str, bytes]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def refused(name: str, **options: Any) -> str:
    with pytest.raises(InvalidRequestError) as error:
        located(name, lambda line: None, **options)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_what_a_checkpoint_is_read_from_is_downloaded_and_nothing_else(hub: Hub, said: list[str]) -> None:
    commit = hub.push("org/name", WANTED | UNWANTED)
    found = located("org/name", said.append)
    assert read(found) == WANTED
    assert sorted(hub.fetched()) == sorted(name.rpartition("/")[2] for name in WANTED)
    assert source_name(found) == f"org/name@{commit}"
    assert located("org/name", said.append) == found
    assert hub.fetched() == [], "the second time, only the commit is asked for"
    assert said == [
        f"org/name: commit {commit}, files to download: 7 (1.0 MB)",
        f"org/name: commit {commit}, from the cache",
    ]


def test_a_directory_wins_and_a_path_is_no_id(
    hub: Hub, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push("org/name", WANTED)
    (tmp_path / "org/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    names = [
        "org/name",
        "./org/other",
        "../org/other",
        "/org/other",
        "org/other/",
        "~/other",
        "other",
        "a/b/c",
    ]
    assert [located(name, said.append) for name in names] == [Path(name) for name in names]
    assert (hub.requests, said) == ([], [])
    assert "org/other is neither a directory here nor a repository that http" in refused("org/other")
    assert source_name(Path("org/name")) == "name"


def test_a_dropped_connection_is_taken_up_where_it_ended(hub: Hub, said: list[str]) -> None:
    hub.push("org/name", WANTED)
    hub.drop_at, hub.drops = 8 * CHUNK, 1
    assert read(located("org/name", said.append)) == WANTED
    asked = [request.range for request in hub.requests if "/storage/" in request.path]
    assert asked == [None, f"bytes={8 * CHUNK}-"]


def test_an_interrupted_download_is_refused_and_the_next_one_completes_it(hub: Hub, said: list[str]) -> None:
    hub.push("org/name", WANTED)
    hub.drop_at, hub.drops = 0, 100
    message = refused("org/name")
    assert "the download of org/name from http" in message
    assert "was interrupted (" in message
    assert "give the same command again" in message
    assert "model.safetensors" in hub.fetched()
    hub.drops = 0
    assert read(located("org/name", said.append)) == WANTED
    assert hub.fetched() == ["model.safetensors"], "the others were complete"


def test_a_killed_service_has_downloaded_by_default_and_the_next_one_completes_it(
    hub: Hub, said: list[str], tmp_path: Path
) -> None:
    commit = hub.push("org/name", WANTED)
    hub.go_on = go_on = threading.Event()
    words = [sys.executable, "-m", "densepath", "serve", "--sft", "org/name", "--reference", "org/name"]
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}
    env.pop("HF_HUB_OFFLINE")  # of the tests
    with (tmp_path / "log").open("w") as log, subprocess.Popen(words, env=env, stderr=log) as process:
        assert hub.half_sent.wait(60)
        process.kill()
    assert (tmp_path / "log").read_text() == f"org/name: commit {commit}, files to download: 7 (1.0 MB)\n"
    hub.go_on = None
    go_on.set()
    hub.fetched()
    with pytest.MonkeyPatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "does not have all of org/name" in refused("org/name")
    assert read(located("org/name", said.append)) == WANTED
    assert "model.safetensors" in hub.fetched()


def test_a_branch_that_has_moved_is_a_new_version_and_a_commit_pins(
    hub: Hub, said: list[str], pair_dirs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hub.push("org/sft", pair_dirs[0])
    hub.push("org/reference", pair_dirs[1])
    reference = located("org/reference", said.append)

    def version(name: str) -> tuple[str, str]:
        pair = load_pair(located(name, said.append), reference, allow_same=True, cache_dir=tmp_path / "w")
        return pair.version, pair.sources[0]

    before = version("org/sft")
    assert before[0] == load_pair(*pair_dirs, cache_dir=tmp_path / "w").version
    assert before[1] == f"org/sft@{first}"
    second = hub.push("org/sft", pair_dirs[1])
    moved = version("org/sft")
    assert moved[1] == f"org/sft@{second}"
    assert moved[0] != before[0]
    hub.requests.clear()
    assert version(f"org/sft@{first}") == before
    assert hub.requests == [], "a commit that the cache has needs no network"
    hub.push("org/sft", pair_dirs[0])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert version("org/sft") == moved
    assert version(f"org/sft@{first}") == before
    assert hub.requests == []


def test_offline_the_cache_is_used_and_nothing_is_asked_for(
    hub: Hub, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.push("org/name", WANTED)
    found = located("org/name", said.append)
    hub.push("org/name", WANTED, branch="later")
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert located("org/name", said.append) == found
    assert said[-1] == f"org/name: commit {commit}, from the cache"
    for name in ("org/name@later", "org/other", f"org/name@{'0' * 40}"):
        message = refused(name)
        assert "is not a directory here, HF_HUB_OFFLINE is set, and the cache in " in message
        assert f"does not have all of {name}: unset" in message
    (found / "tokenizer.json").unlink()
    assert "does not have all of org/name: unset" in refused("org/name")
    shutil.rmtree(found.parent.parent / "trees")  # as other tools leave the cache
    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    assert located("org/name", said.append) == found
    assert hub.requests == []


def test_without_a_network_the_cache_is_used(
    hub: Hub, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push("org/name", WANTED)
    found = located("org/name", said.append)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert located("org/name", said.append) == found
    message = refused("org/other")
    assert message == (
        "org/other is not a directory here, the cache does not have org/other, and http://127.0.0.1:9 cannot "
        "be reached: connect to the network, or give a directory"
    )


def test_a_token_reaches_the_hub_alone_and_a_wrong_one_is_refused(
    hub: Hub, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push("org/name", WANTED)
    hub.repositories["org/name"].token = "right"
    assert "nor a repository that http" in refused("org/name")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    message = refused("org/name")
    assert "refused the token for org/name (status 401): give one that is valid and may read it" in message
    assert "wrong" not in message
    monkeypatch.setenv("HF_TOKEN", "right")
    hub.requests.clear()
    assert read(located("org/name", said.append)) == WANTED
    sent = {(request.path.startswith("/storage/"), request.token) for request in hub.requests}
    assert sent == {(True, None), (False, "right")}, "the host of the weights gets no token"
    hub.repositories["org/name"].token = "another"
    assert "(status 401)" in refused("org/name"), "the cache is no way around"


def test_a_gated_repository_names_its_terms(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push("org/name", WANTED)
    hub.repositories["org/name"].gated = True
    monkeypatch.setenv("HF_TOKEN", "stranger")
    assert refused("org/name").startswith(f"org/name is gated: accept its terms at {hub.url}/org/name, and")


def test_a_revision_is_a_branch_a_tag_a_commit_or_a_request(hub: Hub, said: list[str]) -> None:
    commits = {name: hub.push("org/name", WANTED, branch=name) for name in ("main", "v1.0", "refs/pr/3")}
    for name, commit in commits.items():
        assert source_name(located(f"org/name@{name}", said.append)) == f"org/name@{commit}"
    assert source_name(located("org/name", said.append, revision="v1.0")).endswith(commits["v1.0"])
    assert refused("org/name@gone") == (
        "org/name has no revision gone: give one of its branches, tags or commits behind @"
    )


def test_a_repository_without_safetensors_is_refused_before_it_is_downloaded(hub: Hub) -> None:
    hub.push("org/pickles", {"config.json": b"{}", "pytorch_model-00001-of-00002.bin": b"pickle"})
    hub.push("org/nothing", {"config.json": b"{}"})
    hub.push("org/run", {"config.json": b"{}", "final/model.safetensors": WEIGHTS})
    assert refused("org/pickles").startswith(
        "org/pickles has no safetensors, only pickled weights such as pytorch_model-00001-of-00002.bin, "
        "which are never loaded: name a revision"
    )
    assert "org/nothing has no safetensors: a checkpoint must" in refused("org/nothing")
    assert "a run with several checkpoints is given by --pair" in refused("org/run")
    assert hub.fetched() == []


def adapter_files(**config: Any) -> dict[str, bytes]:
    """An adapter of rank 2 for one matrix of the tiny Llamas, as PEFT saves it."""
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 64), f"{name}.lora_B.weight": torch.ones(64, 2)}
    written = {
        "peft_type": "LORA",
        "r": 2,
        "target_modules": f"{name}".removeprefix("base_model.model."),
        **config,
    }
    return {"adapter_config.json": json.dumps(written).encode(), "adapter_model.safetensors": save(tensors)}


def test_the_base_model_of_an_adapter_comes_from_the_hub(
    hub: Hub, said: list[str], pair_dirs: tuple[Path, Path], tmp_path: Path
) -> None:
    commit = hub.push("org/base", pair_dirs[0], branch="v1.0")
    hub.push("org/base", {"config.json": b"not this one"})
    config = {"base_model_name_or_path": "org/base", "revision": "v1.0"}
    adapter = hub.push("org/adapter", adapter_files(**config) | {"README.md": b"# adapter"})
    merged = whole_checkpoint(located("org/adapter", said.append), None, said.append)
    assert merged.name.startswith(f"org--adapter@{adapter}-")
    assert any(line.startswith(f"org/base: commit {commit}, files to download") for line in said)
    assert load_pair(merged, pair_dirs[0], cache_dir=tmp_path / "w").vocab_size == 300
    hub.repositories.pop("org/base")
    shutil.rmtree(tmp_path / "hub/models--org--base")
    with pytest.raises(InvalidRequestError) as error:
        whole_checkpoint(located("org/adapter", said.append), None, said.append)
    assert "is an adapter of org/base: org/base is neither a directory here nor" in str(error.value)
    assert "(give it by --base, or in adapter_config.json)" in str(error.value)


def test_a_run_on_the_hub_is_a_pair(hub: Hub, tmp_path: Path) -> None:
    parts = {"base": (0.0, 0), "share-0.50": (0.5, 5), "final": (1.0, 10)}
    checkpoints = [
        {"path": path, "share": share, "samples": step, "step": step, "validation_loss": None}
        for path, (share, step) in parts.items()
    ]
    manifest = json.dumps({"kind": "sft", "checkpoints": checkpoints}).encode()
    models = {f"{path}/{name}": data for path in parts for name, data in WANTED.items()}
    commit = hub.push("org/run", {"manifest.json": manifest, "final/optimizer.pt": b"pickle"} | models)
    say = Console(record=True, quiet=True)
    sft, reference = directories(ServeSettings(pair="org/run"), say)
    assert read(sft) == read(reference) == WANTED
    assert source_name(reference) == f"org/run@{commit}/share-0.50"


@pytest.fixture
def densepath(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], tuple[int, str, str]]:
    """Run a command in this process: exit status, standard output, standard error."""

    def run(command: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", shlex.split(command))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_check_takes_ids_and_an_error_is_one_line(
    hub: Hub,
    densepath: Callable[[str], tuple[int, str, str]],
    pair_dirs: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commits = [hub.push(f"org/{path.name}", path) for path in pair_dirs]
    monkeypatch.setattr("densepath.commands.check._show_trial", lambda *_: True)
    status, _, err = densepath(f"densepath check --sft org/sft --reference org/reference@{commits[1]}")
    assert status == 0
    assert f"org/sft: commit {commits[0]}, files to download: " in err
    assert f"org/reference: commit {commits[1]}, files to download: " in err
    assert "it/s" not in err, "there is no bar where there is no terminal"
    status, out, err = densepath("densepath check --sft org/stf --reference org/reference")
    assert (status, out) == (2, "")
    assert err.startswith("error org/stf is neither a directory here nor a repository that http")
    assert len(err.splitlines()) == 1


def test_serve_takes_ids_as_the_page_says(
    hub: Hub,
    densepath: Callable[[str], tuple[int, str, str]],
    pair_dirs: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Up to the engine, which gets the pair as it does from directories."""

    def reached(pair: Pair, *_: object) -> None:
        raise InvalidRequestError(f"pair: {' '.join(pair.sources)}")

    monkeypatch.setattr("densepath.commands.serve.build_engine", reached)
    commits = [
        hub.push("org/name", path, branch=branch)
        for path, branch in zip(pair_dirs, ("revision", "halfway"), strict=True)
    ]
    shell = [
        block.text for block in blocks() if block.page == "docs/from-your-run.md" and block.kind == "shell"
    ]
    (command,) = [each for text in shell for each in split_commands(text) if "org/name" in each]
    status, _, err = densepath(command)
    assert status == 2
    assert f"pair: org/name@{commits[0]} org/name@{commits[1]}\n" in err
