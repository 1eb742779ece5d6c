"""Compression: a routed model split into parts, each quantized or pruned, exported to ONNX and run again.

precision.py        ranges, int8 and int4 codes, and the precision policy of the parts
parts.py            splits a model and its router into parts, and assembles them around a runner
fake_quant.py       rounding in training and calibration
graphs.py           a part as an ONNX graph
graph_cache.py      traced graphs on disk
joints.py           what lies between the parts: latents, pooling, a router's decision
sequential.py       a router that looks again, in parts: glances and a step
export.py           the model on disk, for `omni_lab.engine`: graphs as functions, weights, manifest
litert.py           a part as a LiteRT file
whole_route.py      a route as one PyTorch module, for other compilers
pruning.py          magnitude pruning of weights; importance pruning of heads, hidden units and paths
channel_pruning.py  narrower heads and feed-forward networks, without training
"""

from omni_lab.compression.export import Exporter
from omni_lab.compression.precision import Precision, QuantRange, int8_codes
from omni_lab.engine.runtime import ExportedOmniModel
