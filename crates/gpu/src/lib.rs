//! GPU backend of SparOA on wgpu.
