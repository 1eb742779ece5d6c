"""TODO"""

from omni_lab.compression.export import Exporter
from omni_lab.compression.precision import Precision, QuantRange, int8_codes
from omni_lab.compression.runtime import ExportedOmniModel
