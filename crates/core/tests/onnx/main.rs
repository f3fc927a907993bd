//! ONNX files end to end: conformance against the ONNX backend node tests, real models against
//! ONNX Runtime, hostile files, external data, and writing.

mod build;
mod external;
mod hostile;
mod import;
mod interpret;
mod models;
mod nodes;
mod python;
mod save;
