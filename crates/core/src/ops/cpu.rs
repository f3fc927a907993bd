//! The CPU form of an operator: a prepared kernel run on borrowed tensors.

use half::f16;
use smallvec::SmallVec;
use sparoa_kernels::pool::Pool;

use super::{Op, OpError, Operand, Operands};
use crate::tensor::{DType, Element, Storage, Tensor, TensorMut, TensorRef, TensorType};

/// A CPU kernel prepared for fixed types: weights packed, algorithm chosen. It may be run any
/// number of times, from one thread at a time per [`KernelIo`].
pub trait CpuKernel: Send + Sync {
    /// Bytes of scratch memory that [`CpuKernel::run`] needs with a pool of `threads`; 64-byte
    /// aligned memory of that size is passed in `KernelIo::scratch`, its contents arbitrary.
    fn scratch_bytes(&self, threads: usize) -> usize {
        let _ = threads;
        0
    }

    /// Bytes that the prepared kernel holds (packed weights).
    fn weight_bytes(&self) -> usize {
        0
    }

    /// Whether the kernel holds a constant input itself, packed: [`CpuKernel::run`] looks at its
    /// type at most, and its bytes may be missing.
    fn holds(&self, input: usize) -> bool {
        let _ = input;
        false
    }

    /// The name of the method that was chosen, where there are several; else empty.
    fn method(&self) -> &'static str {
        ""
    }

    /// Computes the outputs. Must not allocate on the hot paths (convolution, GEMM, elementwise,
    /// normalisation, attention, layout).
    ///
    /// # Errors
    /// [`OpError::Value`] when a run-time value is out of the operator's domain.
    fn run(&self, io: &mut KernelIo<'_, '_>, pool: &Pool) -> Result<(), OpError>;
}

/// Tensors of one kernel run.
pub struct KernelIo<'a, 'b> {
    /// Inputs in order; constants too, without bytes where [`CpuKernel::holds`] says so.
    pub inputs: &'b [Option<TensorRef<'a>>],
    /// Outputs in order. Contents are arbitrary before the run.
    pub outputs: &'b mut [TensorMut<'a>],
    /// Scratch memory, [`CpuKernel::scratch_bytes`] long or longer.
    pub scratch: &'b mut [u8],
}

impl<'a> KernelIo<'a, '_> {
    /// Input `i`.
    ///
    /// # Panics
    /// When it is absent: the kernel was prepared for a node that has it.
    pub fn input(&self, i: usize) -> TensorRef<'a> {
        self.get(i).expect("the kernel was prepared for a node with this input")
    }

    /// Input `i`, if present.
    pub fn get(&self, i: usize) -> Option<TensorRef<'a>> {
        self.inputs.get(i).copied().flatten()
    }
}

/// Divides scratch memory into typed slices, each on a 64-byte boundary.
#[derive(Debug)]
pub struct Scratch<'a>(&'a mut [u8]);

impl<'a> Scratch<'a> {
    /// All of `bytes`, which start on a 64-byte boundary.
    pub fn new(bytes: &'a mut [u8]) -> Scratch<'a> {
        Scratch(bytes)
    }

    /// Bytes that [`Scratch::take`] uses up for `len` elements.
    pub fn bytes<T>(len: usize) -> usize {
        (len * size_of::<T>()).next_multiple_of(64)
    }

    /// The next `len` elements, contents arbitrary.
    ///
    /// # Panics
    /// When `scratch_bytes` asked for too little.
    pub fn take<T: Element>(&mut self, len: usize) -> &'a mut [T] {
        let (taken, rest) = std::mem::take(&mut self.0).split_at_mut(Scratch::bytes::<T>(len));
        self.0 = rest;
        bytemuck::cast_slice_mut(&mut taken[..len * size_of::<T>()])
    }
}

/// A kernel made of closures.
struct Prepared<S, R> {
    weight_bytes: usize,
    scratch_bytes: S,
    run: R,
}

impl<S, R> CpuKernel for Prepared<S, R>
where
    S: Fn(usize) -> usize + Send + Sync,
    R: Fn(&mut KernelIo<'_, '_>, &Pool) -> Result<(), OpError> + Send + Sync,
{
    fn scratch_bytes(&self, threads: usize) -> usize {
        (self.scratch_bytes)(threads)
    }

    fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    fn run(&self, io: &mut KernelIo<'_, '_>, pool: &Pool) -> Result<(), OpError> {
        (self.run)(io, pool)
    }
}

/// The kernel that runs a closure and needs no scratch memory.
pub fn kernel<R>(run: R) -> Box<dyn CpuKernel>
where
    R: Fn(&mut KernelIo<'_, '_>, &Pool) -> Result<(), OpError> + Send + Sync + 'static,
{
    kernel_with(0, |_| 0, run)
}

/// The kernel that runs a closure; `scratch_bytes` gets the number of threads.
pub fn kernel_with<S, R>(weight_bytes: usize, scratch_bytes: S, run: R) -> Box<dyn CpuKernel>
where
    S: Fn(usize) -> usize + Send + Sync + 'static,
    R: Fn(&mut KernelIo<'_, '_>, &Pool) -> Result<(), OpError> + Send + Sync + 'static,
{
    Box::new(Prepared { weight_bytes, scratch_bytes, run })
}

/// A kernel that has packed some of its inputs, by a method that has a name.
struct Packed {
    method: &'static str,
    held: Vec<usize>,
    kernel: Box<dyn CpuKernel>,
}

impl CpuKernel for Packed {
    fn scratch_bytes(&self, threads: usize) -> usize {
        self.kernel.scratch_bytes(threads)
    }

    fn weight_bytes(&self) -> usize {
        self.kernel.weight_bytes()
    }

    fn holds(&self, input: usize) -> bool {
        self.held.contains(&input)
    }

    fn method(&self) -> &'static str {
        self.method
    }

    fn run(&self, io: &mut KernelIo<'_, '_>, pool: &Pool) -> Result<(), OpError> {
        self.kernel.run(io, pool)
    }
}

/// The kernel, which holds the inputs `held` ([`CpuKernel::holds`]), with a name for its method.
pub fn packed_kernel(
    method: &'static str,
    held: impl Into<Vec<usize>>,
    kernel: Box<dyn CpuKernel>,
) -> Box<dyn CpuKernel> {
    Box::new(Packed { method, held: held.into(), kernel })
}

/// More bytes than a tensor can have: sizes may come from a hostile file.
const MAX_BYTES: usize = isize::MAX as usize / 2;

/// Runs an operator once on tensors: type inference, kernel preparation, execution. For constant
/// folding, the reference and data-dependent graphs; every input value is available to `infer`.
/// An operator whose kernel lacks f16 computes in f32, as whole graphs do after the passes.
///
/// # Errors
/// Those of [`Op::infer`], [`Op::cpu`] and [`CpuKernel::run`].
pub fn evaluate(
    op: &dyn Op,
    inputs: &[Option<&Tensor>],
    pool: &Pool,
) -> Result<Vec<Tensor>, OpError> {
    if let Some(outputs) = op.compute(inputs, pool) {
        return outputs;
    }
    let operands: Vec<Option<Operand>> = inputs
        .iter()
        .map(|t| t.map(|t| Operand::constant(std::sync::Arc::new(t.clone()))))
        .collect();
    let types = op.infer(&operands)?;
    if let Some(ty) = types.iter().find(|ty| ty.checked_bytes().is_none_or(|b| b > MAX_BYTES)) {
        return Err(OpError::Value(format!("output of {ty} is too large")));
    }
    let half = inputs.iter().flatten().any(|t| t.dtype() == DType::F16);
    let kernel = match op.cpu(&Operands { inputs: &operands, outputs: &types }) {
        Err(OpError::Unsupported(_)) if half => return evaluate_wide(op, inputs, &types, pool),
        kernel => kernel?,
    };
    let mut outputs: Vec<Tensor> = types.into_iter().map(Tensor::zeros).collect();
    let mut scratch = Storage::zeroed(kernel.scratch_bytes(pool.threads()));
    let views: SmallVec<[_; 8]> = inputs.iter().map(|t| t.map(Tensor::view)).collect();
    let mut targets: SmallVec<[_; 4]> = outputs.iter_mut().map(Tensor::view_mut).collect();
    kernel.run(
        &mut KernelIo { inputs: &views, outputs: &mut targets, scratch: scratch.bytes_mut() },
        pool,
    )?;
    drop(targets);
    Ok(outputs)
}

/// [`evaluate`] with f16 inputs widened to f32, and f32 outputs narrowed where `types` are f16.
fn evaluate_wide(
    op: &dyn Op,
    inputs: &[Option<&Tensor>],
    types: &[TensorType],
    pool: &Pool,
) -> Result<Vec<Tensor>, OpError> {
    let widen = |t: &Tensor| t.widened().unwrap_or_else(|| t.clone());
    let narrow = |(t, ty): (Tensor, &TensorType)| match t.as_slice::<f32>() {
        Some(floats) if ty.dtype == DType::F16 => {
            let halves: Vec<f16> = floats.iter().map(|v| f16::from_f32(*v)).collect();
            Tensor::from_slice(t.shape(), &halves)
        }
        _ => t,
    };
    let wide: Vec<Option<Tensor>> = inputs.iter().map(|t| t.map(widen)).collect();
    let wide: Vec<Option<&Tensor>> = wide.iter().map(Option::as_ref).collect();
    let outputs = evaluate(op, &wide, pool)?;
    Ok(outputs.into_iter().zip(types).map(narrow).collect())
}
