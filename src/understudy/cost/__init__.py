"""What a network costs: predicted exactly, or measured."""
