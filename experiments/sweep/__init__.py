"""Sweeps: from a question in one file to many runs, each done once."""
