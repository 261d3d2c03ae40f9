"""Scoring a file of items: the formats of the files, and resuming after a kill."""
