"""Architecture -> network."""
