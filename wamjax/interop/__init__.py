"""Weights of published models: where each tensor of theirs lies in ours, in both directions."""

from wamjax.interop.checkpoint import Loaded, load, save

__all__ = ["Loaded", "load", "save"]
