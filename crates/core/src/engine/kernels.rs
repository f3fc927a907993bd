//! Prepared CPU kernels and cut constants of one graph, shared by all engines of that graph: to
//! try several plans costs no second packing and no second copy of the weights.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::EngineError;
use crate::{
    ir::{Graph, NodeId, ValueId},
    ops::{CpuKernel, Operand, Operands},
    plan::{Arg, PartRange, Task, slice_tensor},
    tensor::{Tensor, TensorType},
};

type KernelKey = (NodeId, Option<PartRange>);
type ConstantKey = (ValueId, Option<(usize, Range<usize>)>, TensorType);

/// See the module. Belongs to one graph.
#[derive(Default)]
pub struct KernelCache {
    kernels: Mutex<HashMap<KernelKey, Arc<dyn CpuKernel>>>,
    constants: Mutex<HashMap<ConstantKey, Arc<Tensor>>>,
}

impl KernelCache {
    /// An empty cache.
    pub fn new() -> KernelCache {
        KernelCache::default()
    }

    /// Bytes that the cached kernels hold.
    pub fn weight_bytes(&self) -> usize {
        lock(&self.kernels).values().map(|k| k.weight_bytes()).sum()
    }

    /// Drops what no engine uses.
    pub fn forget_unused(&self) {
        lock(&self.kernels).retain(|_, kernel| Arc::strong_count(kernel) > 1);
        lock(&self.constants).retain(|_, tensor| Arc::strong_count(tensor) > 1);
    }

    /// The kernel of a CPU task.
    pub(super) fn kernel(
        &self,
        graph: &Graph,
        task: &Task,
    ) -> Result<Arc<dyn CpuKernel>, EngineError> {
        let key = (task.node, task.part.clone());
        if let Some(kernel) = lock(&self.kernels).get(&key) {
            return Ok(kernel.clone());
        }
        let inputs: Vec<Option<Operand>> = task
            .inputs
            .iter()
            .map(|arg| {
                arg.as_ref().map(|arg| match arg {
                    Arg::Constant { .. } => {
                        Operand { ty: arg.ty().clone(), constant: Some(self.constant(graph, arg)) }
                    }
                    Arg::Region(region) => Operand::dynamic(region.ty.clone()),
                })
            })
            .collect();
        let outputs: Vec<TensorType> = task.outputs.iter().map(|r| r.ty.clone()).collect();
        let kernel =
            task.op.cpu(&Operands { inputs: &inputs, outputs: &outputs }).map_err(|source| {
                EngineError::Prepare { node: task.name.clone(), op_type: task.op.op_type(), source }
            })?;
        let kernel: Arc<dyn CpuKernel> = Arc::from(kernel);
        if kernel.weight_bytes() > 0 {
            // They are packed: the file's pages have served.
            inputs.iter().flatten().filter_map(|x| x.constant.as_ref()).for_each(|c| c.release());
        }
        lock(&self.kernels).insert(key, kernel.clone());
        Ok(kernel)
    }

    /// The tensor of a constant argument.
    ///
    /// # Panics
    /// When the argument is not a constant of this graph; the compiler made it from one.
    pub(super) fn constant(&self, graph: &Graph, arg: &Arg) -> Arc<Tensor> {
        let Arg::Constant { value, slice, ty } = arg else {
            unreachable!("called on constants only")
        };
        let whole = graph.value(*value).constant.as_ref();
        let whole = whole.expect("the compiler took the argument from a constant").reader();
        if slice.is_none() && whole.ty() == ty {
            return whole;
        }
        let key = (*value, slice.clone(), ty.clone());
        if let Some(tensor) = lock(&self.constants).get(&key) {
            return tensor.clone();
        }
        let tensor = match slice {
            // A view of a constant: the same bytes under another shape.
            None => Tensor::clone(&whole),
            Some((axis, range)) => slice_tensor(&whole, *axis, range.clone()),
        };
        let tensor = tensor.reshaped(ty.shape.clone()).expect("a view keeps the length");
        let tensor = Arc::new(tensor);
        lock(&self.constants).insert(key, tensor.clone());
        tensor
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for KernelCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KernelCache({} kernels)", lock(&self.kernels).len())
    }
}
