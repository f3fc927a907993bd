//! CPU kernels of SparOA on plain slices.
