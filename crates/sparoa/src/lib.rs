//! SparOA: hybrid CPU+GPU inference of ONNX models.
