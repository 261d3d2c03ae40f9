"""Supervised fine-tuning that makes a pair: checkpoints at shares of the samples."""
