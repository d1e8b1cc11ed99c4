"""What a user sets, as frozen dataclasses, and as text. No torch."""
