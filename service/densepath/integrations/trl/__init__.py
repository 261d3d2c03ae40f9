"""Dense rewards in TRL: a reward function for TRL's trainers, and trainers that keep one reward per token.

reward    `DenseReward`, for `reward_funcs`: the sum of each completion's rewards
checks    refuses settings of TRL that would sum or misplace per-token advantages
credit    what both trainers share: from the sampled ids to advantages `(B, T)`
trainers  `DensePathGRPOTrainer` and `DensePathRLOOTrainer`
"""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    # TRL repeats this warning when it starts vLLM. It does not concern a run without vLLM.
    warnings.filterwarnings("ignore", "TRL currently supports vLLM versions", UserWarning)
    from densepath.integrations.trl.trainers import DensePathGRPOTrainer, DensePathRLOOTrainer
from densepath.integrations.trl.reward import DenseReward
from densepath.rewards.advantages import Baseline

__all__ = ["Baseline", "DensePathGRPOTrainer", "DensePathRLOOTrainer", "DenseReward"]
