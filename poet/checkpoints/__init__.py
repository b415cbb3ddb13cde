"""Checkpoints of runs and released weights."""
