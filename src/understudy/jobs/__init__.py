"""The commands: each brings the other parts together."""
