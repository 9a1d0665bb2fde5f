"""Experiments of any kind as read again: what a paper published next to what was measured, as tables and pictures."""
