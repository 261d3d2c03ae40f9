"""The pair that the settings of a command name: found, checked, and described to people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from densepath.config import PairSettings
from densepath.errors import InvalidRequestError
from densepath.pair.adapters import whole_checkpoint
from densepath.pair.fix_names import fixed_checkpoint
from densepath.pair.hub import located
from densepath.pair.pair import Pair, load_pair
from densepath.pair.pair import Progress as OnProgress
from densepath.pair.runs import MANIFEST, read_sft_run
from densepath.pair.text_half import text_half
from densepath.pair.trainer_runs import pick_pair
from densepath.sequences import Tokenizer


def directories(settings: PairSettings, say: Console) -> tuple[Path, Path]:
    """The two checkpoints that the settings name.

    What the hub has and this machine does not is downloaded, a missing demo is built, and adapters are
    merged. Odd names are fixed if the settings ask for it, and of a model of text and images, the text half
    is taken. Raises InvalidRequestError if the settings name no pair or more than one, or if a checkpoint
    cannot be had.
    """
    tell = partial(say.print, markup=False, soft_wrap=True)

    def prepare(directory: Path) -> Path:
        return fixed_checkpoint(directory, tell) if settings.fix_names else directory

    named = _named(settings, say, tell)
    base = settings.base and located(settings.base, tell)
    sft, reference = (
        text_half(prepare(whole_checkpoint(each, base or None, tell, prepare)), tell) for each in named
    )
    return sft, reference


def _named(settings: PairSettings, say: Console, tell: Callable[[str], None]) -> tuple[Path, Path]:
    match settings.demo, settings.pair, settings.sft, settings.reference:
        case False, None, str() as sft, str() as reference:
            return located(sft, tell), located(reference, tell)
        case False, str() as run_name, None, None:
            directory = located(run_name, tell, run=True)
            if not (directory / MANIFEST).exists():
                picked = pick_pair(directory, settings.reference_at)
                tell(picked.account)
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
