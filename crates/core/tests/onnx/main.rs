//! ONNX files end to end: conformance against the ONNX backend node tests, real models against
//! ONNX Runtime, hostile files, external data, and writing.

mod interpret;
mod nodes;
mod python;
