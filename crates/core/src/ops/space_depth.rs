//! DepthToSpace, SpaceToDepth.

use std::sync::Arc;

use sparoa_kernels::permute::permute;

use super::{
    AttributeValue, Attributes, CpuKernel, Example, GpuCaps, GpuKernel, InputsExt, Op, OpError,
    OpSpec, Operand, Operands, axes, conv::Layout, floats, gpu, kernel, transpose,
};
use crate::tensor::TensorType;

pub(super) const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "DepthToSpace",
        domain: "",
        since: 1,
        inputs: (1, 1),
        outputs: (1, 1),
        parse: |a| {
            let column_row_depth = match a.string("mode")?.as_deref() {
                None | Some("DCR") => false,
                Some("CRD") => true,
                Some(other) => {
                    return Err(OpError::invalid(format!("mode must be DCR or CRD, is {other}")));
                }
            };
            let block = block_size(a)?;
            Ok(Arc::new(DepthToSpace { block, column_row_depth, layout: Layout::Nchw }))
        },
        examples: || {
            let e =
                |name| Example::new(name).attribute("blocksize", 2).input(floats([2, 12, 2, 3], 1));
            vec![e("depth first"), e("columns first").attribute("mode", "CRD")]
        },
    },
    OpSpec {
        name: "SpaceToDepth",
        domain: "",
        since: 1,
        inputs: (1, 1),
        outputs: (1, 1),
        parse: |a| Ok(Arc::new(SpaceToDepth { block: block_size(a)?, layout: Layout::Nchw })),
        examples: || {
            let e = Example::new("by 2").attribute("blocksize", 2);
            vec![e.input(floats([2, 3, 4, 6], 1))]
        },
    },
];

fn block_size(a: &Attributes) -> Result<usize, OpError> {
    let block = a.int("blocksize")?.unwrap_or(0);
    axes::dim(block)
        .ok()
        .filter(|&b| b > 0)
        .ok_or_else(|| OpError::invalid(format!("blocksize is {block}, must be at least 1")))
}

/// Batch, channels, height and width.
fn image(inputs: &[Option<Operand>], layout: Layout) -> Result<[usize; 4], OpError> {
    let x = inputs.required(0, "input")?;
    match (x.shape(), layout) {
        (&[n, c, h, w], Layout::Nchw) | (&[n, h, w, c], Layout::Nhwc) => Ok([n, c, h, w]),
        _ => Err(OpError::invalid(format!("the input must have 4 dimensions, is {}", x.ty))),
    }
}

fn shape(layout: Layout, [n, c, h, w]: [usize; 4]) -> Vec<usize> {
    match layout {
        Layout::Nchw => vec![n, c, h, w],
        Layout::Nhwc => vec![n, h, w, c],
    }
}

fn permutation(x: &Operands<'_>, shape: &[usize], perm: &[usize]) -> Box<dyn CpuKernel> {
    let size = x.input(0).ty.dtype.size();
    let (shape, perm) = transpose::normalize(shape, perm);
    let empty = x.output(0).is_empty();
    kernel(move |io, pool| {
        if !empty {
            permute(io.input(0).bytes, size, &shape, &perm, io.outputs[0].bytes, pool);
        }
        Ok(())
    })
}

/// Moves groups of channels into blocks of pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct DepthToSpace {
    /// Height and width of a block.
    pub block: usize,
    /// The block's position varies faster than the remaining channel (ONNX mode CRD).
    pub column_row_depth: bool,
    /// Of the activations.
    pub layout: Layout,
}

impl DepthToSpace {
    /// The transposition that it is: the input's dimensions taken apart, and their new order.
    fn permutation(&self, x: &Operands<'_>) -> Result<([usize; 6], [usize; 6]), OpError> {
        let [n, c, h, w] = image(x.inputs, self.layout)?;
        let b = self.block;
        let c = c / (b * b);
        Ok(match (self.layout, self.column_row_depth) {
            (Layout::Nchw, false) => ([n, b, b, c, h, w], [0, 3, 4, 1, 5, 2]),
            (Layout::Nchw, true) => ([n, c, b, b, h, w], [0, 1, 4, 2, 5, 3]),
            (Layout::Nhwc, false) => ([n, h, w, b, b, c], [0, 1, 3, 2, 4, 5]),
            (Layout::Nhwc, true) => ([n, h, w, c, b, b], [0, 1, 4, 2, 5, 3]),
        })
    }
}

impl Op for DepthToSpace {
    fn op_type(&self) -> &'static str {
        "DepthToSpace"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let [n, c, h, w] = image(inputs, self.layout)?;
        let b = self.block;
        let area = axes::product(&[b, b])?;
        if !c.is_multiple_of(area) {
            return Err(OpError::invalid(format!(
                "{c} channels do not divide into {b}x{b} blocks"
            )));
        }
        let out = [n, c / area, axes::product(&[h, b])?, axes::product(&[w, b])?];
        let dtype = inputs.required(0, "input")?.ty.dtype;
        Ok(vec![TensorType::new(dtype, shape(self.layout, out))])
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let (shape, perm) = self.permutation(x)?;
        Ok(permutation(x, &shape, &perm))
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        let (shape, perm) = self.permutation(x).ok()?;
        gpu::transpose(x, caps, &shape, &perm)
    }

    fn channels_last(&self) -> Option<Arc<dyn Op>> {
        (self.layout == Layout::Nchw)
            .then(|| Arc::new(DepthToSpace { layout: Layout::Nhwc, ..self.clone() }) as _)
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mode = if self.column_row_depth { "CRD" } else { "DCR" };
        vec![("blocksize", (self.block as i64).into()), ("mode", mode.into())]
    }

    fn domain(&self) -> &'static str {
        if self.layout == Layout::Nchw { "" } else { "ai.sparoa" }
    }
}

/// Moves blocks of pixels into channels.
#[derive(Clone, Debug, PartialEq)]
pub struct SpaceToDepth {
    /// Height and width of a block.
    pub block: usize,
    /// Of the activations.
    pub layout: Layout,
}

impl SpaceToDepth {
    /// As [`DepthToSpace::permutation`].
    fn permutation(&self, x: &Operands<'_>) -> Result<([usize; 6], [usize; 6]), OpError> {
        let [n, c, h, w] = image(x.inputs, self.layout)?;
        let b = self.block;
        let (h, w) = (h / b, w / b);
        Ok(match self.layout {
            Layout::Nchw => ([n, c, h, b, w, b], [0, 3, 5, 1, 2, 4]),
            Layout::Nhwc => ([n, h, b, w, b, c], [0, 1, 3, 2, 4, 5]),
        })
    }
}

impl Op for SpaceToDepth {
    fn op_type(&self) -> &'static str {
        "SpaceToDepth"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let [n, c, h, w] = image(inputs, self.layout)?;
        let b = self.block;
        if !h.is_multiple_of(b) || !w.is_multiple_of(b) {
            return Err(OpError::invalid(format!("{h}x{w} pixels do not divide into {b}x{b}")));
        }
        let out = [n, axes::product(&[c, b, b])?, h / b, w / b];
        let dtype = inputs.required(0, "input")?.ty.dtype;
        Ok(vec![TensorType::new(dtype, shape(self.layout, out))])
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let (shape, perm) = self.permutation(x)?;
        Ok(permutation(x, &shape, &perm))
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        let (shape, perm) = self.permutation(x).ok()?;
        gpu::transpose(x, caps, &shape, &perm)
    }

    fn channels_last(&self) -> Option<Arc<dyn Op>> {
        (self.layout == Layout::Nchw)
            .then(|| Arc::new(SpaceToDepth { layout: Layout::Nhwc, ..self.clone() }) as _)
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        vec![("blocksize", (self.block as i64).into())]
    }

    fn domain(&self) -> &'static str {
        if self.layout == Layout::Nchw { "" } else { "ai.sparoa" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ops::{evaluate, transpose::Transpose},
        tensor::Tensor,
    };
    use sparoa_kernels::pool::Pool;

    fn run(op: &dyn Op, x: &Tensor) -> Tensor {
        evaluate(op, &[Some(x)], &Pool::single()).unwrap().remove(0)
    }

    #[test]
    fn blocks() {
        let x = Tensor::from_slice([1, 4, 1, 2], &[0i32, 1, 10, 11, 20, 21, 30, 31]);
        let op = DepthToSpace { block: 2, column_row_depth: false, layout: Layout::Nchw };
        let y = run(&op, &x);
        assert_eq!(y, Tensor::from_slice([1, 1, 2, 4], &[0i32, 10, 1, 11, 20, 30, 21, 31]));
        assert_eq!(run(&SpaceToDepth { block: 2, layout: Layout::Nchw }, &y), x);
    }

    #[test]
    fn channels_last_twins_agree() {
        let x = floats([2, 12, 4, 6], 1);
        let to = Transpose::new([0, 2, 3, 1]);
        let ops: [Arc<dyn Op>; 3] = [
            Arc::new(DepthToSpace { block: 2, column_row_depth: false, layout: Layout::Nchw }),
            Arc::new(DepthToSpace { block: 2, column_row_depth: true, layout: Layout::Nchw }),
            Arc::new(SpaceToDepth { block: 2, layout: Layout::Nchw }),
        ];
        for op in ops {
            let expected = run(&to, &run(&*op, &x));
            assert_eq!(run(&*op.channels_last().unwrap(), &run(&to, &x)), expected, "{op:?}");
        }
    }
}
