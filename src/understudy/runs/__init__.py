"""A run on disk, and where its evaluations are computed."""
