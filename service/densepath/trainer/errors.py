"""Why a run stops early. Its checkpoints stay, and the same command resumes it from the last one.

TrainerError (RuntimeError)
├── NonFiniteStepError (ArithmeticError)   a loss or a gradient is NaN or infinite; nothing was updated
├── ServiceAwayError (TimeoutError)        the service did not answer within --wait-seconds
└── RunError (ValueError)                  a run directory that holds something else or has other settings
"""

from __future__ import annotations


class TrainerError(RuntimeError):
    """The root of the trainer's own errors. They are not answers of the service, so they have no code."""


class NonFiniteStepError(TrainerError, ArithmeticError):
    """A loss or a gradient that is not finite; raised before the update."""


class ServiceAwayError(TrainerError, TimeoutError):
    """The service did not answer within --wait-seconds."""


class RunError(TrainerError, ValueError):
    """A run directory that holds something else, or was made with other settings."""
