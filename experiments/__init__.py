"""The command line: launch runs, show them, print what a mask schedule freezes, check a model."""
