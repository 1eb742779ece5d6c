"""Runs an exported model, with ONNX Runtime, NumPy and tokenizers alone: no torch, nothing else of this package.

onnx_proto.py      ONNX models written as bytes
library.py         the exported folder: functions, weights and manifest, checked against its digests
route_graph.py     one graph for one route, joined from the functions
inputs.py          raw inputs as arrays
decision_graph.py  graphs of routers: of one decision, of each step
sessions.py        sessions of ONNX Runtime over shared weights, built ahead or in the background
decisions.py       what is decided and answered
sequential.py      routers that look again: queues of samples that wait for the same encoder
stacking.py        single questions as a batch
flops.py           what a route costs
runtime.py         `ExportedOmniModel`: decides, answers, and batches the questions of one route
"""
