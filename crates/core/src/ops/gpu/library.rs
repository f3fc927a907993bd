//! What vendors' libraries compute as well: parts of kernels in terms that know no library. A backend
//! that has one may measure it against the dispatches and take the faster.

use std::ops::Range;

use super::{
    Binding, Dispatch, GpuCaps, GpuConstant, MatrixUnits,
    activation::Epilogue,
    packing,
    product::Product,
    shader::{Shader, fold},
    thin,
    tile::{Right, Tile},
};
use crate::ops::{conv::Flat, epilogue::RESIDUAL_INPUT};

/// Multiply-adds from which on a library may pay: below, a launch takes as long.
const LEAST: usize = 50_000_000;
/// Invocations of a workgroup that finishes what a library left.
const FINISHERS: usize = 256;

/// Dispatches of a kernel that together are `y = relu(x w + bias + residual)`, or a part of what they
/// are, which `finish` makes whole. Every operand begins at a multiple of 16 bytes and has no gaps.
#[derive(Clone, Debug)]
pub struct Standard {
    /// The dispatches, by their place in the kernel.
    pub dispatches: Range<usize>,
    /// How `x` and `w` are multiplied.
    pub computes: Computation,
    /// The left side.
    pub x: Binding,
    /// The result.
    pub y: Binding,
    /// The right side: of 16 bits where `x` is stored so, otherwise f32, and of 11 significant bits where
    /// the device's products are to be [`MatrixUnits::Tf32`].
    pub weight: GpuConstant,
    /// Added to every row: a number per column, of 16 bits where `y` is stored so.
    pub bias: Option<GpuConstant>,
    /// Added to the result; stored as `y` is.
    pub residual: Option<Binding>,
    /// Negative results become zero.
    pub relu: bool,
    /// Whether `x` is stored in 16 bits: as bf16 with [`MatrixUnits::Bf16`], otherwise as f16.
    pub half_x: bool,
    /// Whether `y` is; only if `x` is.
    pub half_y: bool,
    /// What remains to be done to `y` in place.
    pub finish: Option<Dispatch>,
}

/// How operands are multiplied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Computation {
    /// Matrices of m x k and k x n numbers, row after row, `w` column after column where
    /// `columns` says so.
    Product {
        /// m, k and n.
        sizes: [usize; 3],
        /// The order of `w`.
        columns: bool,
    },
    /// Windows of images whose channels lie together; `w` is output channel after output channel,
    /// in each the window's places and in these its input channels.
    Convolution {
        /// What `x` is.
        images: Images,
        /// Output channels.
        channels: usize,
    },
}

/// Images, channels last, and the windows on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Images {
    /// How many.
    pub batch: usize,
    /// Channels of each pixel.
    pub channels: usize,
    /// Their sizes, and those of the windows.
    pub window: Flat,
    /// Sums are to be plain sums of products; otherwise f32 may be transformed first, as
    /// Winograd's convolution does.
    pub plain: bool,
}

impl Standard {
    /// The same within a longer kernel: dispatches from `first` on, bindings as `place` has them.
    pub(super) fn placed(self, first: usize, place: impl Fn(Binding) -> Binding) -> Standard {
        let finish = self.finish.map(|mut dispatch| {
            dispatch.bindings.iter_mut().for_each(|binding| *binding = place(*binding));
            dispatch
        });
        Standard {
            dispatches: self.dispatches.start + first..self.dispatches.end + first,
            x: place(self.x),
            y: place(self.y),
            residual: self.residual.map(place),
            finish,
            ..self
        }
    }
}

/// What the first `dispatches` of a tile's kernel are, if a library could do it.
pub(super) fn standard(
    tile: &Tile,
    product: &Product,
    caps: &GpuCaps,
    dispatches: usize,
) -> Option<Standard> {
    let ([m, k, n], Right::Constant(weight)) = (product.sizes, &tile.right) else { return None };
    let (half_x, half_y) = (caps.halves.input(0), caps.halves.output(0));
    let units = caps.matrix_units;
    // Vectors of 16 bytes.
    let unit = if half_x { MatrixUnits::Fp16 } else { MatrixUnits::Tf32 }.chunk();
    let whole = n.is_multiple_of(unit) && (tile.images.is_some() || k.is_multiple_of(unit));
    let fits = caps.libraries
        && tile.batch == 1
        && m > thin::MAX_ROWS
        && tile.vector_results(caps)
        && tile.y_strides[0] == n
        && whole
        && half_x == units.is_some_and(MatrixUnits::is_half)
        && (half_x || !half_y)
        && m.checked_mul(k)?.checked_mul(n)? >= LEAST;
    if !fits {
        return None;
    }
    let (plain, rest) = tile.epilogue.parted();
    if tile.epilogue.has_residual() && caps.halves.input(RESIDUAL_INPUT) != half_y {
        return None;
    }
    let finish = match rest {
        Some(rest) => Some(finish(&rest, m * n / 4, caps)?),
        None => None,
    };
    let computes = match tile.images {
        Some(images) => Computation::Convolution { images, channels: n },
        None => Computation::Product { sizes: [m, k, n], columns: units.is_some() },
    };
    Some(Standard {
        dispatches: 0..dispatches,
        weight: match (&computes, units) {
            (Computation::Product { .. }, None) => weight.lines(product, false),
            _ => weight.plain_columns(product, units),
        },
        computes,
        x: Binding::Input(0),
        y: Binding::Output(0),
        bias: tile.bias.as_ref().map(|bias| match half_y {
            true => packing::half_bias(&bias.source, units == Some(MatrixUnits::Bf16)),
            false => bias.clone(),
        }),
        residual: plain.residual.then_some(Binding::Input(RESIDUAL_INPUT)),
        relu: plain.relu,
        half_x,
        half_y,
        finish,
    })
}

/// Does the rest to `count` vec4s of the output.
fn finish(rest: &Epilogue, count: usize, caps: &GpuCaps) -> Option<Dispatch> {
    let (grid, groups_x) = fold(count.div_ceil(FINISHERS), caps.max_grid);
    let shader = Shader::new("finish")
        .buffer("y", Binding::Output(0), "vec4<f32>")
        .sizes([("count", count), ("groups_x", groups_x)]);
    let text = format!(
        "$epilogue\n@compute @workgroup_size({FINISHERS})\n\
         fn main(@builtin(workgroup_id) group: vec3<u32>, \
         @builtin(local_invocation_index) thread: u32) {{\n\
         let at = (group.x + group.y * p.groups_x) * {FINISHERS}u + thread;\n\
         if (at >= p.count) {{ return; }}\n\
         y[at_y() + at] = finish4(y[at_y() + at], at);\n}}\n"
    );
    rest.add(shader, "vec4<f32>", caps.matrix_units.is_some()).build(&text, grid)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sparoa_kernels::activation::Activation;

    use super::*;
    use crate::{
        ops::{Halves, Op, Operand, Operands, conv::ResidualKind, gemm::Linear},
        tensor::{Tensor, TensorType},
    };

    /// The standard form of a Linear with a bias and a residual.
    fn linear(op: Linear, [m, k, n]: [usize; 3], caps: &GpuCaps) -> Vec<Standard> {
        let constant = |shape: &[usize]| {
            Operand::constant(Arc::new(Tensor::zeros(TensorType::f32(shape.to_vec()))))
        };
        let dynamic = |shape: [usize; 2]| Operand::dynamic(TensorType::f32(shape));
        let inputs = [
            Some(dynamic([m, k])),
            Some(constant(&[k, n])),
            Some(constant(&[n])),
            Some(dynamic([m, n])),
        ];
        let outputs = op.infer(&inputs).unwrap();
        let operands = Operands { inputs: &inputs, outputs: &outputs };
        op.gpu(&operands, caps).unwrap().standards
    }

    fn caps() -> GpuCaps {
        GpuCaps { libraries: true, units: 16, workgroup_bytes: 48 << 10, ..GpuCaps::ordinary() }
    }

    #[test]
    fn a_library_gets_what_it_knows_and_the_rest_is_finished() {
        let (before, after) = (ResidualKind::BeforeActivation, ResidualKind::AfterActivation);
        let with = |activation, residual| Linear { activation, residual, ..Linear::default() };
        for (op, relu, residual, finish) in [
            (with(Activation::None, after), false, true, 0),
            (with(Activation::Relu, before), true, true, 0),
            (with(Activation::Relu, after), true, false, 2),
            (with(Activation::Gelu, before), false, true, 1),
            (with(Activation::Gelu, after), false, false, 2),
        ] {
            let standards = linear(op, [512, 512, 512], &caps());
            let [standard] = standards.as_slice() else { panic!("one product") };
            assert_eq!((standard.relu, standard.residual.is_some()), (relu, residual));
            let bindings = standard.finish.as_ref().map_or(0, |f| f.bindings.len());
            assert_eq!(bindings, finish, "the result, and what is added");
            assert_eq!(standard.dispatches.start, 0);
        }
    }

    #[test]
    fn only_products_that_are_large_and_whole_have_one() {
        let op = || Linear::default();
        let none = |sizes, caps: &GpuCaps| linear(op(), sizes, caps).is_empty();
        assert!(!none([512, 512, 512], &caps()));
        assert!(none([512, 512, 512], &GpuCaps { libraries: false, ..caps() }));
        assert!(none([512, 512, 512], &GpuCaps { aligned: false, ..caps() }));
        assert!(none([64, 64, 64], &caps()) && none([512, 510, 512], &caps()));
        // With fp16, of values that are stored so.
        let units = Some(MatrixUnits::Fp16);
        let fp16 = GpuCaps { f16: true, matrix_units: units, matrix_bytes: 48 << 10, ..caps() };
        assert!(none([512, 512, 512], &fp16));
        let halves = Halves { inputs: 0b1001, outputs: 1, temps: false };
        let stored = GpuCaps { halves, ..fp16 };
        for units in [MatrixUnits::Fp16, MatrixUnits::Bf16] {
            let caps = GpuCaps { matrix_units: Some(units), ..stored.clone() };
            let standards = linear(op(), [512, 512, 512], &caps);
            assert!(standards[0].half_x && standards[0].half_y);
            assert_eq!(standards[0].weight.tensor().bytes().len(), 2 * 512 * 512);
        }
    }
}
