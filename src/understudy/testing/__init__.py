"""Toy landscapes and contracts, for tests of searchers and stores."""
