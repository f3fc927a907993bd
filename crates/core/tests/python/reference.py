"""Runs models on ONNX Runtime's CPU provider and writes their outputs.

usage: reference.py JOBS

JOBS is a text file of blocks: a line "MODEL FOLDER", then a line "NAME DTYPE DIMS FILE" for each
input (DTYPE as in numpy, DIMS comma-separated or "-" for a scalar, FILE raw little-endian data),
then an empty line. Fields are separated by tabs. Output N is written to FOLDER/output_N.pb as a
TensorProto. Graph optimisations are off: the reference computes what the file says.
"""

import pathlib
import sys

import numpy
import onnxruntime
from onnx import numpy_helper


def run(block):
    model, folder = block[0].split("\t")
    inputs = {}
    for line in block[1:]:
        name, dtype, dims, file = line.split("\t")
        shape = [] if dims == "-" else [int(d) for d in dims.split(",")]
        inputs[name] = numpy.fromfile(file, dtype=dtype).reshape(shape)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for i, output in enumerate(session.run(None, inputs)):
        tensor = numpy_helper.from_array(numpy.asarray(output))
        (pathlib.Path(folder) / f"output_{i}.pb").write_bytes(tensor.SerializeToString())


for block in pathlib.Path(sys.argv[1]).read_text().strip().split("\n\n"):
    run(block.split("\n"))
