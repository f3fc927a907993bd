//! ONNX files end to end: conformance against the ONNX backend node tests, real models against
//! ONNX Runtime, hostile files, external data, and writing.

mod build;
mod external;
mod import;
mod interpret;
mod nodes;
mod python;
