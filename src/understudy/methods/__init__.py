"""How architectures are chosen. Values only: no network is seen here."""
