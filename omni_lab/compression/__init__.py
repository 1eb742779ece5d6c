"""Smaller and faster: the model in parts, each stored and carried out in a precision of its own."""

from omni_lab.compression.artefact import ArtefactError, Exporter, read_manifest, size_of
from omni_lab.compression.fake import FakeQuantization, calibrate
from omni_lab.compression.graphs import ExportError
from omni_lab.compression.grids import Range
from omni_lab.compression.parts import Frame, Part, assemble, assemble_controller, controller_parts, parts_of
from omni_lab.compression.policy import Precision, PrecisionPolicy
from omni_lab.compression.runtime import ExportedOmniModel

__all__ = [
    "ArtefactError",
    "ExportError",
    "ExportedOmniModel",
    "Exporter",
    "FakeQuantization",
    "Frame",
    "Part",
    "Precision",
    "PrecisionPolicy",
    "Range",
    "assemble",
    "assemble_controller",
    "calibrate",
    "controller_parts",
    "parts_of",
    "read_manifest",
    "size_of",
]
