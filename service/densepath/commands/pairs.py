"""The pair that the settings of a command name: found, checked, and described to people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from densepath.config import PairSettings
from densepath.errors import InvalidRequestError
from densepath.pair.adapters import whole_checkpoint
from densepath.pair.fix_names import fixed_checkpoint
from densepath.pair.pair import Pair, load_pair
from densepath.pair.pair import Progress as OnProgress
from densepath.pair.runs import MANIFEST, read_sft_run
from densepath.pair.text_half import text_half
from densepath.pair.trainer_runs import pick_pair
from densepath.sequences import Tokenizer


def directories(settings: PairSettings, say: Console) -> tuple[Path, Path]:
    """The two checkpoints that the settings name. A missing demo is built, and adapters are merged.

    Odd names are fixed if the settings ask for it, and of a model of text and images, the text half is taken.
    Raises InvalidRequestError where they name none, or more than one pair.
    """

    def tell(line: str) -> None:
        say.print(line, markup=False, soft_wrap=True)

    def prepare(directory: Path) -> Path:
        return fixed_checkpoint(directory, tell) if settings.fix_names else directory

    sft, reference = (
        text_half(prepare(whole_checkpoint(each, settings.base, tell, prepare)), tell)
        for each in _named(settings, say)
    )
    return sft, reference


def _named(settings: PairSettings, say: Console) -> tuple[Path, Path]:
    match settings.demo, settings.pair, settings.sft, settings.reference:
        case False, None, Path() as sft, Path() as reference:
            return sft, reference
        case False, Path() as directory, None, None:
            if not (directory / MANIFEST).exists():
                picked = pick_pair(directory, settings.reference_at)
                say.print(picked.account, markup=False, soft_wrap=True)
                return picked.sft, picked.reference
            run = read_sft_run(directory)
            return run.final, run.reference_at(settings.reference_at)
        case True, None, None, None:
            from densepath.demo.show import build_and_show

            demo = build_and_show(say)
            return demo.sft, demo.reference_base  # the clearer signal of the two, by its own table
    raise InvalidRequestError("give both --sft and --reference, or --pair RUN alone, or --demo alone")


def read_pair(settings: PairSettings, say: Console) -> Pair:
    """The checked pair, with a bar while its weights are read; notes about it are printed.

    Raises InvalidPairError with every reason why it is no pair.
    """
    sft, reference = directories(settings, say)
    with weights_bar(say) as progress:
        pair = load_pair(sft, reference, allow_same=settings.allow_same, progress=progress)
    show_notes(pair, say)
    return pair


def show_notes(pair: Pair, say: Console) -> None:
    """Print what is worth knowing about a pair."""
    for note in pair.notes:
        say.print(f"note: {note}", markup=False, soft_wrap=True)


def load_tokenizer(pair: Pair) -> Tokenizer:
    """The tokenizer that both models share."""
    from transformers import AutoTokenizer

    return Tokenizer(AutoTokenizer.from_pretrained(pair.sft, trust_remote_code=False, local_files_only=True))


@contextmanager
def weights_bar(say: Console) -> Iterator[OnProgress]:
    """A bar that counts the bytes of weights that are read."""
    columns = (TextColumn("reading weights"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=say, transient=True) as bar:
        task = bar.add_task("reading weights", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
