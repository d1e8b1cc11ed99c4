"""Architecture compression (Ashok, 2019)."""
