"""Weights of published models: where each tensor of theirs lies in ours, in both directions."""
