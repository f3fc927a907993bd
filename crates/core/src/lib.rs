//! From ONNX bytes to outputs: import, graph passes, analysis, profiling, placement, plan, engine.
//!
//! Modules are declared in pipeline order; a module names only modules declared before it, with
//! one exception: operators ([`ops`]) may name [`ir`]'s model type for subgraph bodies.

#![deny(unsafe_code)]

pub mod tensor;
pub mod ops;
pub mod ir;
pub mod onnx;
pub mod zoo;
pub mod analyze;
pub mod backend;
pub mod profile;
pub mod monitor;
pub mod energy;
pub mod plan;
pub mod predict;
pub mod schedule;
pub mod engine;
pub mod session;
pub mod batching;

#[cfg(test)]
mod toy;
