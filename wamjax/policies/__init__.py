"""Policies: one file per system, and the contract they share."""
