"""The trainer worker: makes the pair by SFT, and improves the policy with the service's rewards.

sft*         supervised fine-tuning, with checkpoints at shares of the samples
probe        what each reference promises, before anyone pays for training
dense_path   Dense-Path REINFORCE: the loop, on a page
sampling     responses from the policy, scored by the service while the rest is sampled
batch        from rewards to what each token's log-probability is multiplied by
learner      the policy under training: log-probabilities, forward-backward, optimizer
run          opens, checks and closes all that a run needs
checkpoints  states of a run that survive a kill at any moment
evaluation   checkpoints compared on a held-out set, and handed to other judges
report       a run as one page
"""
