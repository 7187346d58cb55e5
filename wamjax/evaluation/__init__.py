"""Environments behind one small interface, expert data collection, the closed-loop runner and image
metrics."""
