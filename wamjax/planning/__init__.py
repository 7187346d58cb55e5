"""Pod plans: the real training step, compiled ahead of time for a named topology on a machine without one."""
