"""For `--train.agent_func_path`: the sum of a response's dense rewards, of the ids as they were sampled."""

from __future__ import annotations

import os

from densepath.integrations.openrlhf import DensePathAgentExecutor


class AgentExecutor(DensePathAgentExecutor):
    """What OpenRLHF looks for in this file."""

    def __init__(self) -> None:
        super().__init__(os.environ["DENSEPATH_URL"], api_key=os.environ.get("DENSEPATH_API_KEY"))
