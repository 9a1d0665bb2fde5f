"""Sweeps: one question in one file, answered by many runs, each done once."""
