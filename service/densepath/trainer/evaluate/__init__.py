"""Checkpoints compared on held-out prompts, and handed to other judges."""
