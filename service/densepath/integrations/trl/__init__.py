"""Dense rewards in TRL: a reward function for stock trainers, and trainers that keep one reward a token.

reward    `DenseReward`, for `reward_funcs`: the sum of each completion's rewards
checks    the settings of TRL that would sum or misplace per-token advantages
credit    what both trainers share: from the sampled ids to advantages `(B, T)`
trainers  `DensePathGRPOTrainer` and `DensePathRLOOTrainer`
"""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    # TRL says it again where it starts a vLLM; a run without one is not concerned.
    warnings.filterwarnings("ignore", "TRL currently supports vLLM versions", UserWarning)
    from densepath.integrations.trl.trainers import DensePathGRPOTrainer, DensePathRLOOTrainer
from densepath.integrations.trl.reward import DenseReward
from densepath.rewards.advantages import Baseline

__all__ = ["Baseline", "DensePathGRPOTrainer", "DensePathRLOOTrainer", "DenseReward"]
