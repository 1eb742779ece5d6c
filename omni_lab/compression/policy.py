"""How many bits for which part."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from omni_lab.modalities import Modality


class Precision(enum.StrEnum):
    """How the weights of a part are stored. INT8: matrices in a byte per weight, a scale per output channel, and
    products of integers; vectors in half precision. INT4: half a byte, a scale for every 32 weights, and products of
    floats. FP16: half precision; on a processor without half-precision arithmetic it saves storage, not time."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"


@dataclass(frozen=True)
class PrecisionPolicy:
    """A precision for every part of a model, by its name.

    name: for tables. encoders: of each modality's encoder. rest: of paths, blocks, heads and the controller.
    exceptions: from patterns of parts' names, such as "path.1.*", to a precision; the last that fits counts.
    """

    name: str
    encoders: Mapping[Modality, Precision]
    rest: Precision
    exceptions: Mapping[str, Precision] = field(default_factory=dict)

    @classmethod
    def everywhere(cls, precision: Precision) -> PrecisionPolicy:
        return cls(precision.value, {m: precision for m in Modality}, precision)

    @classmethod
    def mixed(cls) -> PrecisionPolicy:
        """int8 for pictures and clips, half precision for text and sound, as the literature advertises; int8 for what
        joins them, where most weights are."""
        seen = {m: Precision.INT8 for m in (Modality.IMAGE, Modality.VIDEO)}
        heard = {m: Precision.FP16 for m in (Modality.TEXT, Modality.AUDIO)}
        return cls("mixed", seen | heard, Precision.INT8)

    def of(self, part: str) -> Precision:
        """The precision of the part of that name."""
        kind, _, rest = part.partition(".")
        chosen = self.rest
        if kind == "encoder":
            chosen = self.encoders.get(Modality(rest.partition(".")[0]), self.rest)
        for pattern, precision in self.exceptions.items():
            if fnmatchcase(part, pattern):
                chosen = precision
        return chosen

    def check(self, parts: Iterable[str]) -> None:
        """Raises ValueError for an exception that fits none of these parts."""
        known = list(parts)
        for pattern in self.exceptions:
            if not any(fnmatchcase(part, pattern) for part in known):
                raise ValueError(
                    f"the precision policy {self.name!r} names {pattern!r}: no part is called so ({known})"
                )
