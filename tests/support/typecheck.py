"""How annotations are checked in tests."""

from beartype import BeartypeConf, beartype

# An int is as good as a float (PEP 484).
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
