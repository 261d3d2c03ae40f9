"""Why a run stops before its time. Its checkpoints stay, and the same command goes on from the last of them.

TrainerError (RuntimeError)
├── NonFiniteStepError (ArithmeticError)   a loss or a gradient is NaN or infinite; nothing was updated
├── ServiceAwayError (TimeoutError)        the service did not come back in the time it was given
└── RunError (ValueError)                  a run directory that does not fit, or is no run
"""

from __future__ import annotations


class TrainerError(RuntimeError):
    """The root of the trainer's own errors. They are no answer of the service's, and have no code."""


class NonFiniteStepError(TrainerError, ArithmeticError):
    """A loss or a gradient that is not finite; raised before the update."""


class ServiceAwayError(TrainerError, TimeoutError):
    """No answer from the service within the time that it was given to come back."""


class RunError(TrainerError, ValueError):
    """A run directory that holds something else, or was made with other settings."""
