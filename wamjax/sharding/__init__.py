"""Meshes, and the rule that turns a parameter's path into a partition."""
