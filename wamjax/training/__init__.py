"""Training: state, step, loop, checkpoints and metrics. Knows the policy contract, not the policies."""
