"""Writes the ONNX backend node tests of the installed onnx package as folders.

usage: node_cases.py FOLDER

Each case becomes FOLDER/NAME/model.onnx and FOLDER/NAME/data/{input,output}_N.pb; FOLDER/cases.txt
lists "NAME RTOL ATOL" and is written last. FOLDER/version.txt holds the package's version.
"""

import pathlib
import sys
import warnings

import numpy
import onnx
from onnx import defs, numpy_helper
from onnx.backend.test.case.node import collect_testcases

OLDEST_OPSET = 9


def raise_opset(model):
    """Moves a model of an opset before 9 to 9 where its operators did not change in between."""
    for opset in model.opset_import:
        if opset.domain != "" or opset.version >= OLDEST_OPSET:
            continue
        def since(version):
            return [
                defs.get_schema(n.op_type, max_inclusive_version=version, domain=n.domain).since_version
                for n in model.graph.node
            ]
        if since(opset.version) == since(OLDEST_OPSET):
            opset.version = OLDEST_OPSET


def write_values(folder, prefix, values, infos):
    for i, (value, info) in enumerate(zip(values, infos)):
        # Sequences, optionals and maps are not tensors; models with them are refused at load.
        if not info.type.HasField("tensor_type"):
            continue
        if isinstance(value, onnx.TensorProto):
            tensor = value
        else:
            tensor = numpy_helper.from_array(numpy.asarray(value), info.name)
        (folder / f"{prefix}_{i}.pb").write_bytes(tensor.SerializeToString())


def main(root):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    lines = []
    for case in cases:
        model = case.model
        raise_opset(model)
        folder = root / case.name
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        inputs, outputs = case.data_sets[0]
        write_values(folder / "data", "input", inputs, model.graph.input)
        write_values(folder / "data", "output", outputs, model.graph.output)
        lines.append(f"{case.name} {case.rtol} {case.atol}\n")
    (root / "version.txt").write_text(onnx.__version__)
    (root / "cases.txt").write_text("".join(sorted(lines)))


main(pathlib.Path(sys.argv[1]))
