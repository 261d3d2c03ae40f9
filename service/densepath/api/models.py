"""The models of the compatible routes: `sft`, `reference`, and `dpr-teacher`, which combines both.

The teacher's log-probability is `t = (1 + 1/b) log p_sft - (1/b) log p_reference`: a distillation client that
maximises `t - log pi` of its own samples maximises `r - b (log pi - log p_sft)`, divided by b, which is the
dense reward with the KL to SFT that `densepath train --kl b` has. Its log-probabilities are not normalised.
"""

from __future__ import annotations

from densepath.api.served import Served
from densepath.engine.scorer import View
from densepath.errors import ModelNotFoundError

MODELS = ("sft", "reference", "dpr-teacher")


def model_view(name: str | None, served: Served, *, top: int = 0) -> View:
    """The view of a model by its name, such as `sft` or `NAME/sft`; the view of the SFT for None."""
    match (name or "sft").removeprefix(f"{served.model_name}/"):
        case "sft":
            return View(1.0, 0.0, top)
        case "reference":
            return View(0.0, 1.0, top)
        case "dpr-teacher":
            return View(1 + 1 / served.teacher_kl, -1 / served.teacher_kl, top)
    names = ", ".join(f"`{each}`" for each in MODELS)
    raise ModelNotFoundError(f"log-probabilities here are those of the models {names}", param="model")


def check_name(name: str | None, served: Served) -> None:
    """Refuse a name that is neither the name of the pair nor of one of its models."""
    if name != served.model_name:
        model_view(name, served)
