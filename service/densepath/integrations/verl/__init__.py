"""Dense rewards in verl: one reward a token, from the rollout to `token_level_rewards`.

settings        what verl's config says of them, and what it must not say
reward_manager  `DenseRewardManager`: scores the ids of a response, as verl holds them
agent_loop      `DenseAgentLoopManager`: carries them out of the rollout, where verl carries one number
function        `compute_score`: a custom reward function, the sum, of text

Nothing is imported here: verl loads each part by its name, in the process that needs it.
"""
