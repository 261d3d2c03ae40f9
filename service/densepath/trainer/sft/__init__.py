"""Supervised fine-tuning that makes a pair, with checkpoints at shares of the samples."""
