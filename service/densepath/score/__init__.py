"""Scoring a file of items: its formats, and a run that resumes where it was killed."""
