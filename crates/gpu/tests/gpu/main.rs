//! A GPU backend against the CPU kernels, its program mechanics and its failures: wgpu, or with
//! `SPAROA_GPU=cuda` CUDA. Without a GPU each test says that it was skipped and passes.

mod device;
mod failures;
mod operators;
mod precision;
mod programs;
mod rounded;
mod shapes;
