"""The values that everything is about, and what they are written with. No torch."""
