"""The version describes the bytes that were loaded: a file that changes at any time is found out."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import densepath.pair.identity
import densepath.pair.weights
from checkpoints import make_checkpoint
from damage import WEIGHTS, edit, remove, set_values, shard, write
from densepath.api.lifecycle import Phase
from densepath.api.served import Served
from densepath.api.service import Service
from densepath.commands.pairs import load_tokenizer
from densepath.engine.fake import FakeScorer
from densepath.engine.transformers import TransformersScorer
from densepath.errors import InvalidPairError
from densepath.pair.identity import Identity, changed, identify_all
from densepath.pair.pair import Pair, inspect_pair, load_pair
from densepath.sequences import from_response
from densepath.verification.start import start_unverified
from live import start

Load = Callable[[], Pair]


@pytest.fixture
def load(dirs: tuple[Path, Path], tmp_path: Path) -> Load:
    return lambda: load_pair(*dirs, cache_dir=tmp_path / "cache")


def overwrite(path: Path) -> None:
    """Change one weight in place; size and modification time stay as they were."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\x00\x00\x80\x3f")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_keeping_times(path: Path) -> None:
    """As `rsync --times` and `cp --preserve` do: another file under the name, of the same size and time."""
    copy = path.with_suffix(".new")
    shutil.copy2(path, copy)
    overwrite(copy)
    os.utime(copy, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(copy, path)


def replace_by_itself(path: Path) -> None:
    copy = path.with_suffix(".new")
    shutil.copy2(path, copy)
    os.replace(copy, path)


def replace_directory(directory: Path) -> None:
    shutil.copytree(directory, directory.with_name("again"))
    directory.rename(directory.with_name("before"))
    directory.with_name("again").rename(directory)


#: What is done to a directory, and the files that must be named.
CHANGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "rewritten in place": (lambda d: overwrite(d / WEIGHTS), [WEIGHTS]),
    "replaced, size and time kept": (lambda d: replace_keeping_times(d / WEIGHTS), [WEIGHTS]),
    "replaced by the same bytes": (lambda d: replace_by_itself(d / WEIGHTS), [WEIGHTS]),
    "removed": (remove(WEIGHTS), [WEIGHTS]),
    "config": (edit("config.json", rms_norm_eps=1e-3), ["config.json"]),
    "generation config": (remove("generation_config.json"), ["generation_config.json"]),
    "tokenizer": (write("tokenizer.json", "{}"), ["tokenizer.json"]),
    "tokenizer config": (edit("tokenizer_config.json", bos_token="x"), ["tokenizer_config.json"]),
    "special tokens that are new": (write("special_tokens_map.json", "{}"), ["special_tokens_map.json"]),
    "chat template": (write("chat_template.jinja", "{{ 1 }}"), ["chat_template.jinja"]),
    "an index that is new": (
        write("model.safetensors.index.json", "{}"),
        ["model.safetensors.index.json"],
    ),
    "the directory": (
        replace_directory,
        ["chat_template.jinja", "config.json", "generation_config.json", WEIGHTS, "tokenizer.json",
         "tokenizer_config.json"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("side", [0, 1], ids=["sft", "reference"])
@pytest.mark.parametrize("name", CHANGES)
def test_change_after_the_check_is_named(name: str, side: int, dirs: tuple[Path, Path], load: Load) -> None:
    pair = load()
    pair.ensure_unchanged()
    change, files = CHANGES[name]
    change(dirs[side])
    with pytest.raises(InvalidPairError) as caught:
        pair.ensure_unchanged()
    assert caught.value.message == "the pair has changed since it was checked: " + "; ".join(
        f"{('sft', 'reference')[side]}: {file}: has changed since it was read: "
        "it must not change until the pair is loaded"
        for file in files
    )


def test_what_no_engine_reads_may_change(dirs: tuple[Path, Path], load: Load) -> None:
    pair = load()
    (dirs[0] / "README.md").write_text("words")
    (dirs[0] / "optimizer.pt").write_bytes(b"state")
    (dirs[1] / "checkpoint-2").mkdir()
    (dirs[1] / "checkpoint-2" / "config.json").write_text("{}")
    (dirs[1] / WEIGHTS).read_bytes()
    pair.ensure_unchanged()


def test_link_to_a_file_that_is_pointed_elsewhere(
    dirs: tuple[Path, Path], load: Load, tmp_path: Path
) -> None:
    """As in the hub's cache, where every file is a link to its blob."""
    shard(dirs[0])
    blob = (dirs[0] / "a.safetensors").rename(tmp_path / "blob")
    (dirs[0] / "a.safetensors").symlink_to(blob)
    other = Path(shutil.copy2(blob, tmp_path / "other"))
    pair = load()
    (dirs[0] / "a.safetensors").unlink()
    (dirs[0] / "a.safetensors").symlink_to(other)
    with pytest.raises(InvalidPairError, match=r"sft: a\.safetensors: has changed"):
        pair.ensure_unchanged()


def test_link_to_the_directory_is_followed_once(dirs: tuple[Path, Path], tmp_path: Path) -> None:
    """`latest` may move on while the pair is loaded: what was checked is loaded, under the given name."""
    latest = tmp_path / "latest"
    latest.symlink_to(dirs[0])
    pair = load_pair(latest, dirs[1], cache_dir=tmp_path / "cache")
    latest.unlink()
    latest.symlink_to(dirs[1])
    pair.ensure_unchanged()
    assert pair.sft == dirs[0].resolve()
    assert pair.sources == ("latest", "reference")


def test_names_are_told_of_relative_paths(
    dirs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dirs[0])
    assert load_pair(".", "../reference", cache_dir=tmp_path / "cache").sources == ("sft", "reference")


@pytest.mark.parametrize("change", [overwrite, replace_keeping_times])
def test_digest_is_not_taken_from_the_cache_for_other_bytes(
    change: Callable[[Path], None], dirs: tuple[Path, Path], load: Load, tmp_path: Path
) -> None:
    before = load().version
    change(dirs[0] / WEIGHTS)
    assert load().version != before
    set_values("lm_head.weight", float("nan"), 1)(dirs[0])
    os.utime(dirs[0] / WEIGHTS, (1, 1))
    assert "lm_head.weight (1)" in str(inspect_pair(*dirs, cache_dir=tmp_path / "cache"))


@pytest.mark.parametrize("moment", ["before the weights are read", "while they are read"])
def test_change_during_the_check(
    moment: str, dirs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Any = densepath.pair.weights.scan_file

    def scan(path: Path, *rest: Any) -> Any:
        if moment == "before the weights are read":
            overwrite(dirs[0] / WEIGHTS)
        found = real(path, *rest)
        if moment == "while they are read":
            overwrite(dirs[0] / WEIGHTS)
        return found

    monkeypatch.setattr(densepath.pair.weights, "scan_file", scan)
    found = inspect_pair(*dirs, cache_dir=tmp_path / "cache")
    assert isinstance(found, list)
    assert [str(problem) for problem in found] == [
        f"sft: {WEIGHTS}: has changed since it was read: it must not change until the pair is loaded"
    ]


def test_rewritten_within_one_tick_of_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most kernels count a file's times in ticks: a file may be written twice within one, around a look."""
    real, tick_ns = densepath.pair.identity.identify, 10_000_000

    def identify(path: Path) -> Identity:
        found = real(path)
        times = (found.mtime_ns // tick_ns * tick_ns, found.ctime_ns // tick_ns * tick_ns)
        return found._replace(mtime_ns=times[0], ctime_ns=times[1])

    monkeypatch.setattr(densepath.pair.identity, "identify", identify)
    file = tmp_path / WEIGHTS
    for _ in range(20):
        file.write_bytes(b"one")
        before = identify_all(tmp_path)
        with file.open("r+b") as opened:
            opened.write(b"two")
        assert changed(tmp_path, before) == [WEIGHTS]


def test_clock_of_a_file_server_that_is_ahead_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / WEIGHTS).write_bytes(b"one")
    monkeypatch.setattr(densepath.pair.identity.time, "time_ns", lambda: 0)
    assert list(identify_all(tmp_path)) == [WEIGHTS]


@pytest.mark.parametrize("change", [overwrite, replace_keeping_times])
async def test_pair_that_changes_while_it_is_loaded_is_never_served(
    change: Callable[[Path], None], dirs: tuple[Path, Path], load: Load
) -> None:
    class SlowScorer(FakeScorer):
        async def start(self) -> None:
            change(dirs[1] / WEIGHTS)
            await super().start()

    pair = load()
    served = Served(pair, load_tokenizer(pair), SlowScorer(1024))
    lifecycle = Service(served, start_unverified("it is a test")).lifecycle
    with pytest.raises(InvalidPairError, match=r"since it was checked: reference: model\.safetensors: has"):
        await lifecycle.start()
    assert lifecycle.phase is Phase.DEAD
    assert lifecycle.problem() is not None
    assert not lifecycle.loaded.is_set()


def test_file_that_is_rewritten_while_it_is_served_changes_no_number(dirs: tuple[Path, Path]) -> None:
    """transformers maps weights into memory: a file that is rewritten would change them under way."""
    scorer = TransformersScorer(*dirs, context_length=64)
    scorer.load()
    sequence = from_response([1, 2, 3], [4, 5, 6])
    before = scorer.score_now(sequence).logp_sft_T
    weights = dirs[0] / WEIGHTS
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        file.write(bytes(weights.stat().st_size // 2))
    assert np.array_equal(scorer.score_now(sequence).logp_sft_T, before)


@pytest.mark.engine
def test_weights_that_are_replaced_while_the_real_engine_loads(
    dirs: tuple[Path, Path], tmp_path: Path
) -> None:
    """They pass the verification, as transformers reads them too: that must not be remembered either."""
    other = make_checkpoint(tmp_path / "other", seed=3)
    log, cache = tmp_path / "log", tmp_path / "home"
    process, url = start(
        *("--sft", dirs[0], "--reference", dirs[1], "--kv-cache-memory-bytes", "67108864"),
        log=log,
        env={"XDG_CACHE_HOME": str(cache)},
    )
    try:
        while "loading the pair" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)  # between two looks at the condition
        os.replace(other / WEIGHTS, dirs[0] / WEIGHTS)
        while process.poll() is None:
            with suppress(httpx.TransportError):
                assert httpx.get(f"{url}/readyz", timeout=5).status_code == 503
            time.sleep(0.1)  # between two looks at the condition
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert log.read_text().splitlines()[-1] == (
        f"error the pair has changed since it was checked: sft: {WEIGHTS}: has changed since it was read: "
        "it must not change until the pair is loaded"
    )
    assert list((cache / "densepath").glob("verified/*")) == []
