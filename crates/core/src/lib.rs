//! From ONNX bytes to outputs.
