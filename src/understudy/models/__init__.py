"""Networks by name and as files."""
