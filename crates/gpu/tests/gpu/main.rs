//! The GPU backend against the CPU kernels, its program mechanics and its failures. Without a
//! Vulkan, Metal or DirectX 12 adapter each test says that it was skipped and passes.

mod device;
mod failures;
mod operators;
mod programs;
mod shapes;
