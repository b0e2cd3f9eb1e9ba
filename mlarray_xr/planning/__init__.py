"""Decisions: pure functions that return frozen values and touch no file."""
