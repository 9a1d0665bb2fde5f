"""Reads experiments of any kind, and shows published figures next to measured ones, as tables and pictures."""
