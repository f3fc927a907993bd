//! Operators: what each computes, costs and how each processor runs it. One file per operator or
//! family; [`registry`] holds the one explicit list.

mod attributes;
pub mod axes;
mod cpu;
mod epilogue;
mod gpu;
mod number;
mod operands;
mod registry;
mod runs;
mod spec;
pub mod window;

pub mod attention;
pub mod batch_norm;
pub mod cast;
pub mod concat;
pub mod constant;
pub mod control;
pub mod conv;
pub mod conv_transpose;
pub mod cumulative;
pub mod dynamic;
pub mod einsum;
pub mod elementwise;
pub mod expand;
pub mod fused_layers;
pub mod gather;
pub mod gemm;
pub mod inverted_residual;
pub mod matmul;
pub mod norm;
pub mod packed;
pub mod variant;
mod pad;
pub mod pooling;
pub mod quantize;
pub mod quantized;
pub mod recurrent;
pub mod reduce;
pub mod reshape;
pub mod resize;
pub mod roll;
pub mod scatter;
pub mod select;
pub mod shape;
pub mod slice;
pub mod softmax;
pub mod space_depth;
pub mod transpose;

use std::{any::Any, fmt, ops::Range, sync::Arc};

use serde::{Deserialize, Serialize};
use sparoa_kernels::Arithmetic;

use crate::tensor::{DType, TensorType};

pub use attributes::{AttributeValue, Attributes};
pub use cpu::{CpuKernel, KernelIo, Scratch, evaluate, kernel, kernel_with, packed_kernel};
pub use gpu::{
    Binding, Computation, Dispatch, GpuCaps, GpuConstant, GpuKernel, Halves, Images, MatrixUnits,
    Standard,
};
pub use operands::{InputsExt, Operand, Operands};
pub use registry::{find, nearest, specs};
pub use spec::{Example, ExampleInput, NEWEST_OPSET, OpSpec, floats, integers, sample};
pub use variant::Variant;

/// An operator with its attributes parsed: one node's worth of meaning, without the node.
///
/// Its `Debug` text must show every attribute: it is part of the key under which measured
/// latencies are cached.
pub trait Op: Any + fmt::Debug + Send + Sync {
    /// The ONNX op_type, or the field's name for a fused operator.
    fn op_type(&self) -> &'static str;

    /// Types of the outputs, from the types (and, for shape-like inputs, the constant values) of
    /// the inputs.
    ///
    /// # Errors
    /// [`OpError::DataDependent`] when an output shape depends on run-time values; any other
    /// error makes the model invalid.
    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError>;

    /// Floating-point (or integer) operations of one evaluation, 2 per multiply-add.
    fn flops(&self, x: &Operands<'_>) -> u64;

    /// Bytes that one evaluation reads and writes, each operand once.
    fn bytes(&self, x: &Operands<'_>) -> u64 {
        x.bytes()
    }

    /// What kind of work its kernels do, which decides how near they come to a processor's peak.
    fn class(&self, x: &Operands<'_>) -> KernelClass {
        let _ = x;
        KernelClass::Memory
    }

    /// The products that it consists of, each with its operations; none where memory decides.
    fn products(&self, x: &Operands<'_>) -> Vec<(KernelClass, u64)> {
        match self.class(x) {
            KernelClass::Memory => Vec::new(),
            class => vec![(class, self.flops(x))],
        }
    }

    /// Whether its dense CPU kernel skips zeros of input 0 where there are many, which it sees by
    /// itself while it runs.
    fn skips_zeros(&self, x: &Operands<'_>) -> bool {
        let _ = x;
        false
    }

    /// Prepares the CPU kernel: packs constant weights, picks the algorithm.
    ///
    /// # Errors
    /// [`OpError::Unsupported`] for an element type or attribute that the CPU kernel lacks.
    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError>;

    /// The GPU kernel as data, or `None` when this operator (with these types) has none.
    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        let _ = (x, caps);
        None
    }

    /// The output axis along which the operator can be computed in independent contiguous parts,
    /// or `None`. All output dimensions before it must be 1, so that a range of it is one
    /// contiguous range of bytes. Only operators with one output may be split.
    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        let _ = x;
        None
    }

    /// Ranges along [`Op::split_axis`] must begin and end at multiples of this.
    fn split_unit(&self, x: &Operands<'_>) -> usize {
        let _ = x;
        1
    }

    /// How to compute output range `range` along [`Op::split_axis`]: the operator for that part
    /// and what it needs of each input. A run-time input may only be sliced along an axis whose
    /// preceding dimensions are all 1 (contiguous bytes); constants along any axis.
    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let _ = (x, range);
        None
    }

    /// For an operator defined on NCHW tensors: the same on NHWC tensors (activations only,
    /// weights unchanged).
    fn channels_last(&self) -> Option<Arc<dyn Op>> {
        None
    }

    /// The same operator computing its products so, for operators made of products. It shows in
    /// the `Debug` text, not in [`Op::attributes`].
    fn with_arithmetic(&self, arithmetic: Arithmetic) -> Option<Arc<dyn Op>> {
        let _ = arithmetic;
        None
    }

    /// The most products one after the other that [`Op::with_arithmetic`] sets: their roundings add
    /// up.
    fn product_depth(&self) -> usize {
        usize::from(self.with_arithmetic(Arithmetic::Exact).is_some())
    }

    /// The same operator computed by this kind of kernel on the CPU, for operators that have
    /// weights which may be pruned. Shows as [`Op::with_arithmetic`] does.
    fn with_variant(&self, variant: Variant) -> Option<Arc<dyn Op>> {
        let _ = variant;
        None
    }

    /// The operator that commutes with transposition: if every input in `inputs` order is
    /// replaced by its transposition as `Permuted::inputs` says, the outputs come out transposed
    /// by `perm` (`out'[i] = out[perm[i]]` in dimensions). `None` when a transposition cannot
    /// pass.
    fn permuted(&self, x: &Operands<'_>, perm: &[usize]) -> Option<Permuted> {
        let _ = (x, perm);
        None
    }

    /// True when output 0 holds the same bytes as input 0 under another shape: the plan makes
    /// them one buffer and runs nothing.
    fn is_view(&self) -> bool {
        false
    }

    /// The model that this node equals when these inputs are as they are, e.g. the branch of an
    /// `If` whose condition is constant.
    fn expand(&self, inputs: &[Option<Operand>]) -> Option<crate::ir::Expansion> {
        let _ = inputs;
        None
    }

    /// The outputs of one evaluation, for operators whose output types only running tells (loops,
    /// `NonZero`): [`evaluate`] asks this first. `None`: infer the types, then run the kernel.
    fn compute(
        &self,
        inputs: &[Option<&crate::tensor::Tensor>],
        pool: &sparoa_kernels::Pool,
    ) -> Option<Result<Vec<crate::tensor::Tensor>, OpError>> {
        let _ = (inputs, pool);
        None
    }

    /// False for operators that must not be folded (random generators).
    fn is_pure(&self) -> bool {
        true
    }

    /// Attributes for writing the node as ONNX, by name.
    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        Vec::new()
    }

    /// Domain for writing the node as ONNX: `""` for standard operators, `"ai.sparoa"` for fused
    /// ones.
    fn domain(&self) -> &'static str {
        ""
    }
}

impl dyn Op {
    /// This operator as a concrete type.
    pub fn downcast<T: Op>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }

    /// True when the operator is a `T`.
    pub fn is<T: Op>(&self) -> bool {
        self.downcast::<T>().is_some()
    }
}

/// Kinds of work that come near a processor's peak to different degrees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelClass {
    /// Products of matrices.
    Matmul,
    /// Convolutions whose channels mix.
    Convolution,
    /// Convolutions channel by channel.
    Depthwise,
    /// Everything whose time is that of moving its operands.
    Memory,
}

impl KernelClass {
    /// Every class, in the order of its discriminants.
    pub const ALL: [KernelClass; 4] = [
        KernelClass::Matmul,
        KernelClass::Convolution,
        KernelClass::Depthwise,
        KernelClass::Memory,
    ];

    /// The class of a convolution with so many groups and input channels.
    pub fn of_conv(groups: usize, c_in: usize) -> KernelClass {
        if groups > 1 && groups == c_in { KernelClass::Depthwise } else { KernelClass::Convolution }
    }
}

/// A part of a split operator.
#[derive(Clone, Debug)]
pub struct Part {
    /// Computes the part. Its output type is the full one with the split axis shortened.
    pub op: Arc<dyn Op>,
    /// What it reads of each input, in input order.
    pub inputs: Vec<PartInput>,
}

/// What a part reads of one input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartInput {
    /// All of it.
    Whole,
    /// `range` along `axis`.
    Range {
        /// Axis of the input.
        axis: usize,
        /// Half-open range of indices.
        range: Range<usize>,
    },
}

/// An operator rewritten for transposed tensors; see [`Op::permuted`].
#[derive(Clone, Debug)]
pub struct Permuted {
    /// The rewritten operator.
    pub op: Arc<dyn Op>,
    /// Transposition each input needs, in input order; `None` leaves that input as it is.
    pub inputs: Vec<Option<Vec<usize>>>,
}

/// What can go wrong in an operator. The graph adds the node's name and op_type.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OpError {
    /// The node contradicts the operator's definition.
    #[error("{0}")]
    Invalid(String),
    /// Legal ONNX that SparOA does not run; the text names the nearest supported thing.
    #[error("{0}")]
    Unsupported(String),
    /// An output shape depends on run-time values.
    #[error("output shape depends on the run-time value of input {input}")]
    DataDependent {
        /// Index of the input.
        input: usize,
    },
    /// A run-time value is out of the operator's domain (an index beyond the axis).
    #[error("{0}")]
    Value(String),
}

impl OpError {
    /// An [`OpError::Invalid`] from text.
    pub fn invalid(text: impl Into<String>) -> OpError {
        OpError::Invalid(text.into())
    }

    /// An [`OpError::Unsupported`] from text.
    pub fn unsupported(text: impl Into<String>) -> OpError {
        OpError::Unsupported(text.into())
    }

    /// An [`OpError::Unsupported`] for an element type, naming those that work.
    pub fn dtype(got: DType, supported: &[DType]) -> OpError {
        let names: Vec<_> = supported.iter().map(|d| d.name()).collect();
        OpError::Unsupported(format!("element type {got} (supported: {})", names.join(", ")))
    }
}
