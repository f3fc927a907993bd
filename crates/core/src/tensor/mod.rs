//! Element types, tensor types and tensors: the values that flow through a graph.

mod dtype;
mod storage;
mod value;

pub use dtype::{DType, Element};
pub use storage::{Buffer, Source, Storage};
pub use value::{Tensor, TensorMut, TensorRef, TensorType, count_zeros};
