"""The pair: two checkpoints of one run, what is in their files, and whether they belong together."""
