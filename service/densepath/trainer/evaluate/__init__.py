"""Compares checkpoints on held-out prompts, and writes their answers for other judges."""
