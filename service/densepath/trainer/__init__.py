"""The trainer worker: makes the pair by SFT, and improves the policy with the rewards of the service.

sft/        supervised fine-tuning, with checkpoints at chosen shares of the samples
evaluate/   checkpoints compared on held-out prompts; `probe` says what each reference promises
rollouts/   responses sampled from a policy, by vLLM or by transformers
reinforce/  Dense-Path REINFORCE; `reinforce/dense_path.py` is the algorithm on one page
report/     shows a run on one page
"""
