"""The demo's task as files for `densepath train`, and the link to where they lie."""

import json
import os
import random
from pathlib import Path

from densepath.demo.prompts import COUNT, HELD_OUT, LINK, PROMPTS, publish
from densepath.demo.recipe import Recipe
from densepath.demo.store import Demo
from densepath.demo.task import HELD_OUT_WORDS, OPERATIONS, held_out
from densepath.trainer.prompts import read_rows


def _demo(directory: Path) -> Demo:
    directory.mkdir()
    examples = tuple(held_out(12, random.Random(0)))
    return Demo(directory, directory, directory, directory, examples, {})


def test_the_trainer_reads_prompts_and_held_out_answers(tmp_path):
    link = publish(_demo(tmp_path / "demo-1"))
    prompts, checks = ([row for _, row in read_rows(link / name)] for name in (PROMPTS, HELD_OUT))
    assert len(prompts) == COUNT
    words = {row["messages"][0]["content"].partition(": ")[2] for row in prompts}
    assert not words & HELD_OUT_WORDS
    assert {key for row in prompts for key in row} == {"messages"}, "a reward needs no answer"
    assert len(checks) == 12
    for row in checks:
        operation, _, word = row["messages"][0]["content"].partition(": ")
        assert row["answer"] == OPERATIONS[operation](word)
        assert word in HELD_OUT_WORDS


def test_what_is_there_is_left_and_the_same_each_time(tmp_path):
    one, other = _demo(tmp_path / "demo-1"), _demo(tmp_path / "demo-2")
    publish(one)
    before = {path.name: path.stat().st_mtime_ns for path in one.directory.iterdir()}
    publish(one)
    assert {path.name: path.stat().st_mtime_ns for path in one.directory.iterdir()} == before
    assert before.keys() == {PROMPTS, HELD_OUT}
    publish(other)
    for name in before:
        assert (one.directory / name).read_bytes() == (other.directory / name).read_bytes()


def test_a_file_that_a_stopped_process_left_unfinished_is_written_again(tmp_path):
    demo = _demo(tmp_path / "demo-1")
    (demo.directory / f".{PROMPTS}.partial").write_text('{"mess')
    (tmp_path / f".{LINK}.partial").symlink_to("nowhere")
    link = publish(demo)
    assert json.loads((link / PROMPTS).read_text().splitlines()[-1])
    assert sorted(os.listdir(tmp_path)) == [LINK, "demo-1"]


def test_the_link_follows_the_recipe_and_moves_with_its_folder(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    publish(_demo(folder / "demo-1"))
    publish(_demo(folder / "demo-2"), Recipe(seed=1))
    assert os.readlink(folder / LINK) == "demo-2"
    moved = folder.rename(tmp_path / "mounted")
    assert (moved / LINK / PROMPTS).is_file()
    assert (moved / LINK / PROMPTS).read_bytes() != (moved / "demo-1" / PROMPTS).read_bytes()
