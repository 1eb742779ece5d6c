"""The profiles `smoke`, `quick`, `standard` and `full`, read from profiles.yaml into the dataclasses of schema.py."""

from __future__ import annotations

import dataclasses
from enum import Enum
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from omni_lab.config.schema import Profile
from omni_lab.utils.lookup import lookup

BASE = "standard"  # the other profiles in the file change this one
_field_types = cache(get_type_hints)


def parse_config(kind: Any, value: Any, base: Any = None, *, where: str) -> Any:
    """Converts a value read from YAML to the type `kind`: a configuration dataclass, or the type of one of its fields.

    base: for a dataclass or a dict, what `value` changes: fields and keys that it does not name stay as they are there.
    where: the dotted path to the value, for error messages.
    Raises ValueError for an unknown field, a wrong type or a wrong length; the message names the path and the value.
    """
    container, arguments = get_origin(kind) or kind, get_args(kind)
    if container is UnionType:  # X | None
        return None if value is None else parse_config(arguments[0], value, base, where=where)
    if kind is Any:
        return tuple(parse_config(Any, entry, where=where) for entry in value) if isinstance(value, list) else value
    if dataclasses.is_dataclass(kind):
        return _parse_fields(kind, value, base, where)
    if container is dict:
        _check_type(value, dict, where)
        entries = dict(base or {})
        for name, entry in value.items():
            key = parse_config(arguments[0], name, where=f"a key of {where}")
            entries[key] = parse_config(arguments[1], entry, entries.get(key), where=f"{where}.{name}")
        return entries
    if container is tuple:
        _check_type(value, list, where)
        kinds = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(kinds) != len(value):
            raise ValueError(f"{where} must have {len(kinds)} entries: got {value!r}")
        return tuple(
            parse_config(k, v, where=f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True))
        )
    if issubclass(container, Enum):
        _check_type(value, str, where)
        return lookup(value, {member.value: member for member in container}, f"{container.__name__} in {where}")
    _check_type(value, (float, int) if kind is float else kind, where)
    return value


def _parse_fields(kind: Any, value: Any, base: Any, where: str) -> Any:
    _check_type(value, dict, where)
    types = _field_types(kind)
    defaults = kind if base is None else base  # the class holds the default of a field as an attribute
    changes = {}
    for name, entry in value.items():
        field_type = lookup(name, types, f"field of {where}")
        changes[name] = parse_config(field_type, entry, getattr(defaults, name, None), where=f"{where}.{name}")
    return kind(**changes) if base is None else dataclasses.replace(base, **changes)


def _check_type(value: Any, expected: type | tuple[type, ...], where: str) -> None:
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        names = " or ".join(kind.__name__ for kind in (expected if isinstance(expected, tuple) else (expected,)))
        raise ValueError(f"{where} must be {names}: got {value!r}")


def load_profiles(text: str) -> dict[str, Profile]:
    """Profiles from YAML: one mapping per name, of which `BASE` is complete and the others hold changes to it."""
    content = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    named = {name: {"name": name, **fields} for name, fields in content.items()}
    base = parse_config(Profile, named[BASE], where=BASE)
    return {name: parse_config(Profile, fields, base, where=name) for name, fields in named.items()}


PROFILES = load_profiles(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def get_profile(name: str) -> Profile:
    """The profile of that name. Raises ValueError naming the nearest known one."""
    return lookup(name, PROFILES, "profile")
