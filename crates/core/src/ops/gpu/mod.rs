//! The GPU form of an operator: kernels as data, in WGSL. Nothing here talks to a device.

mod activation;
mod attention;
mod blocks;
mod chunk_attention;
mod chunks;
mod clusters;
mod conv;
mod copy;
mod elementwise;
mod gather;
mod library;
mod linear;
mod matrix_attention;
mod matrix_blocks;
mod matrix_units;
mod packing;
mod pooling;
mod product;
mod rows;
mod sequence;
mod shader;
mod thin;
mod tile;
mod warp_groups;

use std::{borrow::Cow, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::tensor::Tensor;

pub(in crate::ops) use attention::{Placement, attention};
pub(in crate::ops) use conv::conv;
pub(in crate::ops) use copy::{concat, expand, pad, roll, slice, split, transpose};
pub(in crate::ops) use elementwise::elementwise;
pub(in crate::ops) use gather::gather;
pub use library::{Computation, Images, Standard};
pub(in crate::ops) use linear::{gemm, linear, matmul};
pub(in crate::ops) use pooling::{batch_norm, pool};
pub(in crate::ops) use rows::{layer_norm, reduce, softmax};
pub(in crate::ops) use sequence::{Stage, StageInput, sequence, stage_caps};

/// The arithmetic of matrix units (tensor cores): how they round the operands of products. Sums are
/// f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MatrixUnits {
    /// f32 with a mantissa of 11 significant bits.
    Tf32,
    /// f16: 11 significant bits, and numbers up to 65504.
    Fp16,
    /// bf16: 8 significant bits, and f32's range.
    Bf16,
}

impl MatrixUnits {
    /// Elements in 16 bytes of operands.
    const fn chunk(self) -> usize {
        match self {
            MatrixUnits::Tf32 => 4,
            MatrixUnits::Fp16 | MatrixUnits::Bf16 => 8,
        }
    }

    /// Whether operands have 16 bits. Texts are the same for both kinds of them: which one `half` means
    /// there is settled when they are translated.
    pub const fn is_half(self) -> bool {
        matches!(self, MatrixUnits::Fp16 | MatrixUnits::Bf16)
    }

    /// `k` inner elements rounded up to whole slices of the longest lines, 128 bytes.
    const fn padded(self, k: usize) -> usize {
        k.next_multiple_of(8 * self.chunk())
    }
}

/// Which operands of a node a backend stores in 16 bits: as bf16 where products are of
/// [`MatrixUnits::Bf16`], otherwise as f16. Texts are written for f32 all the same: such a
/// backend converts what they load and store. A text that takes the numbers as they are declares
/// its buffer as `u32` words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halves {
    /// Inputs, a bit for each.
    pub inputs: u64,
    /// Outputs, a bit for each.
    pub outputs: u64,
    /// What lies between the stages of a fused operator.
    pub temps: bool,
}

impl Halves {
    /// Operands that can be told apart.
    pub const OPERANDS: usize = 64;

    /// Whether input `i` is stored in 16 bits.
    pub fn input(&self, i: usize) -> bool {
        i < Halves::OPERANDS && self.inputs >> i & 1 == 1
    }

    /// Whether output `i` is stored in 16 bits.
    pub fn output(&self, i: usize) -> bool {
        i < Halves::OPERANDS && self.outputs >> i & 1 == 1
    }
}

/// What a GPU kernel may use of the adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuCaps {
    /// 16-bit floats in shaders and wanted by the user.
    pub f16: bool,
    /// Bytes of workgroup memory.
    pub workgroup_bytes: u32,
    /// Invocations per workgroup at most.
    pub workgroup_size: u32,
    /// Workgroups per grid dimension at most.
    pub max_grid: u32,
    /// Bytes of one storage binding at most.
    pub max_binding_bytes: u64,
    /// The adapter is a software rasteriser: barriers and workgroup memory are slow there,
    /// register tiles and vec4 loads are not.
    pub software: bool,
    /// Invocations per subgroup where that is one fixed number and shaders may use subgroup
    /// operations, otherwise 0.
    pub subgroup: u32,
    /// Multiprocessors (compute units) that work side by side, 0 where that is not known.
    pub units: u32,
    /// Every operand begins at a multiple of 16 bytes, so that vec4 loads are possible. False
    /// only for parts of split operators at odd places.
    pub aligned: bool,
    /// Matrix units that are there, and wanted by the user, for products with constants. Their
    /// kernels are understood by the CUDA backend alone.
    pub matrix_units: Option<MatrixUnits>,
    /// Bytes of workgroup memory of kernels for matrix units.
    pub matrix_bytes: u32,
    /// Matrix units work for four warps at once, and read workgroup memory themselves.
    pub warp_groups: bool,
    /// Workgroups can be clusters: they run at the same time, and wait for one another.
    pub clusters: bool,
    /// Operands stored in 16 bits; set for each node by backends that know such storage.
    pub halves: Halves,
    /// The backend may have a vendor's library compute what kernels tell in [`GpuKernel::standards`].
    pub libraries: bool,
}

impl GpuCaps {
    /// Invocations per workgroup where each has one of `count` elements: many where even so every
    /// multiprocessor has several workgroups, since to begin one takes as long as a few elements.
    fn threads(&self, count: usize) -> usize {
        let many = 256;
        let enough = self.units > 0 && count >= 8 * many * self.units as usize;
        if enough && self.workgroup_size as usize >= many { many } else { 64 }
    }

    /// What nearly every GPU of an edge machine can do.
    pub const fn ordinary() -> GpuCaps {
        GpuCaps {
            f16: false,
            workgroup_bytes: 32 << 10,
            workgroup_size: 256,
            max_grid: 65_535,
            max_binding_bytes: 1 << 30,
            software: false,
            subgroup: 32,
            units: 0,
            aligned: true,
            matrix_units: None,
            matrix_bytes: 0,
            warp_groups: false,
            clusters: false,
            halves: Halves { inputs: 0, outputs: 0, temps: false },
            libraries: false,
        }
    }
}

/// A GPU kernel: dispatches run in order, each seeing the writes of those before it.
#[derive(Clone, Debug, Default)]
pub struct GpuKernel {
    /// Dispatches in order.
    pub dispatches: Vec<Dispatch>,
    /// Constant buffers (weights in the layout the shader wants), resident on the device.
    pub constants: Vec<GpuConstant>,
    /// Bytes of temporary buffers that live from the first dispatch to the last.
    pub temps: Vec<usize>,
    /// Which of them are stored in 16 bits, as [`Halves::temps`] admits; their bytes are counted as f32.
    pub half_temps: Vec<usize>,
    /// Dispatches that libraries could stand in for. None where [`GpuCaps::libraries`] is not set.
    pub standards: Vec<Standard>,
}

/// A constant buffer: a constant of the graph, and how to rearrange it for the shader. The
/// rearrangement runs when the kernel is loaded, not when it is described.
#[derive(Clone, Debug)]
pub struct GpuConstant {
    /// The graph's constant.
    pub source: Arc<Tensor>,
    /// Name of the rearrangement; equal names and `args` on one source give equal buffers.
    pub form: &'static str,
    /// Sizes that the rearrangement needs.
    pub args: Vec<usize>,
    /// Rearranges. Its result holds f32, i32, u32 or (packed in pairs) f16 elements, or bf16's bits as u16.
    pub make: fn(&Tensor, &[usize]) -> Tensor,
}

impl GpuConstant {
    /// A constant used as it is.
    pub fn plain(source: Arc<Tensor>) -> GpuConstant {
        GpuConstant { source, form: "plain", args: Vec::new(), make: |t, _| t.clone() }
    }

    /// A rearranged constant.
    pub fn packed(
        source: Arc<Tensor>,
        form: &'static str,
        args: Vec<usize>,
        make: fn(&Tensor, &[usize]) -> Tensor,
    ) -> GpuConstant {
        GpuConstant { source, form, args, make }
    }

    /// The buffer's contents.
    pub fn tensor(&self) -> Tensor {
        (self.make)(&self.source, &self.args)
    }
}

/// One compute dispatch.
///
/// The runtime binds, in group 0: binding 0 a uniform block, bindings 1.. the buffers of
/// `bindings` in order: constants as `var<storage, read>`, all others as
/// `var<storage, read_write>` (so that one buffer may serve several of them). The uniform block
/// is `struct Params { offsets: array<vec4<u32>, 2>, ... }`: first the element offset (in 4-byte
/// elements) at which each of up to 8 bindings begins, filled in by the runtime, then `params`,
/// padded to 16 bytes. Buffers are padded to 16 bytes and hold f32, i32 or u32 elements, constants
/// also pairs of f16 or bf16, and those of [`GpuCaps::halves`] one of these; boolean and 64-bit tensors
/// never reach the GPU.
#[derive(Clone, Debug)]
pub struct Dispatch {
    /// Name for traces and caches.
    pub label: &'static str,
    /// Complete WGSL with one entry point, `main`. Identical text shares one pipeline, so put
    /// sizes into `params`, not into the text.
    pub source: Cow<'static, str>,
    /// Values of the shader's `override` constants.
    pub overrides: Vec<(&'static str, f64)>,
    /// Buffers, at most 8.
    pub bindings: Vec<Binding>,
    /// Operator parameters; floats by `f32::to_bits`.
    pub params: Vec<u32>,
    /// Workgroups in x, y, z, each at least 1 and at most `GpuCaps::max_grid`.
    pub grid: [u32; 3],
    /// Workgroups are few and each has much to do: they had better begin together, when each multiprocessor
    /// can take as many as the others.
    pub spread: bool,
    /// So many workgroups along z are a cluster: see [`GpuCaps::clusters`].
    pub cluster: u32,
}

/// A buffer of a dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binding {
    /// Input of the node, by index.
    Input(usize),
    /// Output of the node, by index.
    Output(usize),
    /// Entry of [`GpuKernel::constants`].
    Constant(usize),
    /// Entry of [`GpuKernel::temps`].
    Temp(usize),
}
