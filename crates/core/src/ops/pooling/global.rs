//! Global pools: maximum, mean and p-norm over all pixels.

use std::{ops::Range, sync::Arc};

use sparoa_kernels::reduce::{ReduceOp, reduce};

use super::{GpuCaps, GpuKernel, PoolKind, gpu, layout, layout_attribute, norm_order};
use crate::{
    ops::{
        AttributeValue, CpuKernel, Example, InputsExt, Op, OpError, OpSpec, Operand, Operands,
        Part, PartInput, floats, kernel,
        number::{Number, for_dtype},
        reduce::ReduceKind,
        window::Layout,
    },
    tensor::{DType, TensorType},
};

pub(super) const MAX: OpSpec = OpSpec {
    name: "GlobalMaxPool",
    domain: "",
    since: 1,
    inputs: (1, 1),
    outputs: (1, 1),
    parse: |a| Ok(Arc::new(GlobalPooling { kind: PoolKind::Max, layout: layout(a)? })),
    examples,
};

pub(super) const AVERAGE: OpSpec = OpSpec {
    name: "GlobalAveragePool",
    parse: |a| {
        let kind = PoolKind::Average { count_include_pad: false };
        Ok(Arc::new(GlobalPooling { kind, layout: layout(a)? }))
    },
    ..MAX
};

pub(super) const LP: OpSpec = OpSpec {
    name: "GlobalLpPool",
    parse: |a| {
        let kind = PoolKind::Lp { p: norm_order(a)? };
        Ok(Arc::new(GlobalPooling { kind, layout: layout(a)? }))
    },
    ..MAX
};

pub(super) fn examples() -> Vec<Example> {
    vec![
        Example::new("two images").input(floats([2, 3, 5, 4], 1)),
        Example::new("one image").input(floats([1, 5, 3, 3], 2)),
        Example::new("three spatial dimensions").input(floats([1, 2, 2, 3, 4], 3)),
    ]
}

/// A pool over all pixels; every spatial dimension becomes 1.
#[derive(Clone, Debug, PartialEq)]
pub struct GlobalPooling {
    /// What is computed.
    pub kind: PoolKind,
    /// Order of the dimensions.
    pub layout: Layout,
}

impl GlobalPooling {
    /// Outer, reduced and inner sizes of the input.
    fn sizes(&self, shape: &[usize]) -> [usize; 3] {
        let pixels = self.layout.spatial(shape).iter().product();
        match self.layout {
            Layout::Nchw => [shape[0] * shape[1], pixels, 1],
            Layout::Nhwc => [shape[0], pixels, shape[shape.len() - 1]],
        }
    }
}

impl Op for GlobalPooling {
    fn op_type(&self) -> &'static str {
        match self.kind {
            PoolKind::Max => "GlobalMaxPool",
            PoolKind::Average { .. } => "GlobalAveragePool",
            PoolKind::Lp { .. } => "GlobalLpPool",
        }
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "X")?;
        let rank = x.shape().len();
        if rank < 2 {
            return Err(OpError::invalid(format!(
                "the input has shape {:?}, a global pool needs batch and channels",
                x.shape()
            )));
        }
        let channels = x.shape()[self.layout.channel_axis(rank)];
        let shape = self.layout.shape(x.shape()[0], &vec![1; rank - 2], channels);
        Ok(vec![TensorType::new(x.ty.dtype, shape)])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        x.input(0).ty.len() as u64
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let [outer, len, inner] = self.sizes(x.input(0).shape());
        let dtype = x.output(0).dtype;
        let op = match self.kind {
            PoolKind::Max => ReduceOp::Max,
            PoolKind::Average { .. } => ReduceOp::Mean,
            PoolKind::Lp { p } => {
                return Ok(for_dtype!(dtype, T in [F32, F64] => norm::<T>(p, len, inner)));
            }
        };
        if dtype != DType::F32 {
            return Err(OpError::dtype(dtype, &[DType::F32]));
        }
        Ok(kernel(move |io, pool| {
            reduce(op, outer, len, inner, io.input(0).slice(), io.outputs[0].slice_mut(), pool);
            Ok(())
        }))
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        let kind = match self.kind {
            PoolKind::Max => ReduceKind::Max,
            PoolKind::Average { .. } => ReduceKind::Mean,
            PoolKind::Lp { p: 2 } => ReduceKind::L2,
            PoolKind::Lp { .. } => return None,
        };
        gpu::reduce(kind, self.sizes(x.input(0).shape()), x, caps)
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        match *x.input(0).shape() {
            [n, ..] if n > 1 => Some(0),
            [_, c, ..] if c > 1 && self.layout == Layout::Nchw => Some(1),
            _ => None,
        }
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let axis = self.split_axis(x)?;
        Some(Part { op: Arc::new(self.clone()), inputs: vec![PartInput::Range { axis, range }] })
    }

    fn channels_last(&self) -> Option<Arc<dyn Op>> {
        (self.layout == Layout::Nchw)
            .then(|| Arc::new(GlobalPooling { layout: Layout::Nhwc, ..*self }) as Arc<dyn Op>)
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mut list = Vec::new();
        if let PoolKind::Lp { p } = self.kind {
            list.push(("p", i64::from(p).into()));
        }
        list.extend(layout_attribute(self.layout));
        list
    }

    fn domain(&self) -> &'static str {
        if self.layout == Layout::Nhwc { "ai.sparoa" } else { "" }
    }
}

fn norm<T: Number>(p: u32, len: usize, inner: usize) -> Box<dyn CpuKernel> {
    let p = f64::from(p);
    kernel(move |io, pool| {
        let x = io.input(0).slice::<T>();
        pool.run_parts(io.outputs[0].slice_mut::<T>(), inner.max(1), &|outer, y| {
            for (i, y) in y.iter_mut().enumerate() {
                let at = |l: usize| x[(outer * len + l) * inner + i].to_f64().abs();
                *y = T::from_f64((0..len).map(|l| at(l).powf(p)).sum::<f64>().powf(1.0 / p));
            }
        });
        Ok(())
    })
}
