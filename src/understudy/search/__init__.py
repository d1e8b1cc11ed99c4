"""Ways of finding architectures: what proposes, what learns, and the loop between them."""
