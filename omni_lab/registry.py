"""Parts of one's own, by name: encoders, answer heads and routers that a configuration can ask for.

To be routed, an encoder of images needs the attributes image_size (pixels) and grid (rows and columns of its tokens),
one of video frame_size and grid (tokens along a side), one of audio samples_per_token: its FLOPs are counted with them.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from omni_lab.config.models import Component
from omni_lab.utils.lookup import lookup

LIBRARIES = ("builtins", "torch", "lightning", "timm", "torchaudio")
B = TypeVar("B", bound=Callable[..., Any])


class _Entry(NamedTuple):
    builder: Callable[..., Any]
    version: str


class Registry:
    """Builders of one kind of part by name.

    kind: for messages. contract: what a builder is called with, and returns.
    """

    def __init__(self, kind: str, contract: str) -> None:
        self.kind, self.contract = kind, contract
        self._entries: dict[str, _Entry] = {}

    def register(self, name: str, *, version: str = "") -> Callable[[B], B]:
        """A decorator for a class or function that builds the part; registering a name again replaces it.

        version: goes into the identity of checkpoints, so that weights of another version are not loaded. By default
            a digest of the builder's source code; ValueError if that cannot be read.
        """

        def add(builder: B) -> B:
            self._entries[name] = _Entry(builder, version or self._source_digest(name, builder))
            return builder

        return add

    def _source_digest(self, name: str, builder: Callable[..., Any]) -> str:
        """Of a class with those of its bases that are not torch's; what else it calls is not in it."""
        parts = [c for c in getattr(builder, "__mro__", (builder,)) if str(c.__module__).split(".")[0] not in LIBRARIES]
        try:
            return hashlib.sha256("".join(map(inspect.getsource, parts)).encode()).hexdigest()[:8]
        except (OSError, TypeError) as error:
            raise ValueError(
                f"the source of {self.kind} {name!r} cannot be read: pass version=... ({error})"
            ) from error

    def build(self, component: Component, **arguments: Any) -> Any:
        """The part, from the component's options and what every builder of this kind is called with. Raises ValueError
        for a name that is not registered, and for options that the builder does not take."""
        builder = lookup(component.name, self._entries, self.kind).builder
        try:
            inspect.signature(builder).bind(**arguments, **component.options)
        except TypeError as error:
            raise ValueError(f"{self.kind} {component.name!r}: {error}; {self.contract}") from error
        return builder(**arguments, **component.options)

    def version(self, component: Component) -> str:
        """What stands for the part's code in the identity of a checkpoint."""
        return lookup(component.name, self._entries, self.kind).version


ENCODERS = Registry(
    "encoder",
    "a builder is called with out_dim, that of text also with vocab_size, and returns a module that maps values and "
    "mask to Tokens of width out_dim",
)
ANSWER_HEADS = Registry(
    "answer head",
    "a builder is called with modalities, dim and num_answers, and returns a module that maps fused streams and their "
    "weights (or None) to logits",
)
ROUTERS = Registry(
    "router",
    "a builder is called with space, dim, hidden_dim, penalty_conditioned and num_choices, and returns a Router",
)
