"""`typechecker` checks the library's annotations, shapes included, while tests run. An int is a float."""

from beartype import BeartypeConf, beartype

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))
