"""Flower's quickstart-pytorch with a small model and data of its own, and fedpfn's parts put in."""
