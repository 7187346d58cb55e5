"""Counting: parameters, floating-point operations, and what chips can do."""
