"""Smaller and faster: the model in parts, each of which may be stored and carried out in its own way."""

from omni_lab.compression.parts import Part, assemble, parts_of

__all__ = ["Part", "assemble", "parts_of"]
