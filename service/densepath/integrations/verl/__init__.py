"""Dense rewards in verl: one reward per token, from the rollout to `token_level_rewards`.

settings        the settings for them in verl's config, and the settings that are refused
reward_manager  `DenseRewardManager`: scores the ids of a response as verl has them
agent_loop      `DenseAgentLoopManager`: returns all rewards from the rollout, where verl returns one number
function        `compute_score`: a custom reward function that returns the sum for a text

Nothing is imported here: verl loads each part by its name, in the process that needs it.
"""
