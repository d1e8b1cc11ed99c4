"""Architecture -> Evaluation: losses, the one training loop, scores."""
