"""Network -> Space: its graph, what its channels are tied to, what can go."""
