"""The policy server: wire protocols, sessions, and the contract of what is served."""
