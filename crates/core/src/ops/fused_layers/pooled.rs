//! A pruned convolution and the maximum of its result over windows: one sparse kernel, where that
//! is the fastest.

use std::sync::Arc;

use sparoa_kernels::{
    Pool, conv::Conv2dParams, isa, pooling::Pool2dParams, sparse::SparsePooledConv2d,
};

use super::links::{Feed, Link};
use crate::{
    ops::{
        CpuKernel, KernelIo, OpError, Scratch,
        conv::{Conv, Layout, ResidualKind},
        kernel_with, packed_kernel,
        pooling::{PoolKind, Pooling},
        variant::{self, SPARSE, Variant},
    },
    tensor::{DType, Storage, Tensor, TensorType},
};

/// Two such layers.
struct Pair<'a> {
    conv: &'a Conv,
    batch: usize,
    params: Conv2dParams,
    size: [usize; 2],
    windows: Pool2dParams,
    out: [usize; 2],
    /// The weight and the bias, and which inputs of the whole the convolution reads.
    constants: [Option<&'a Tensor>; 2],
    inputs: Vec<usize>,
}

/// What computes `links`: the sparse kernel if they are such a pair and it is the faster one or
/// asked for, else what `others` makes.
///
/// # Errors
/// Those of `others`.
pub(super) fn or_else(
    links: &[Link],
    output: &TensorType,
    others: impl Fn() -> Result<Box<dyn CpuKernel>, OpError>,
) -> Result<Box<dyn CpuKernel>, OpError> {
    let Some(pair) = Pair::of(links) else { return others() };
    match pair.conv.variant.under(pair.conv.arithmetic) {
        Variant::Dense => others(),
        Variant::Sparse => pair.kernel().map_or_else(others, Ok),
        Variant::Fastest => pair.faster(output, others),
    }
}

impl<'a> Pair<'a> {
    fn of(links: &'a [Link]) -> Option<Pair<'a>> {
        let [first, last] = links else { return None };
        let conv = first.op.downcast::<Conv>()?;
        let pool = last.op.downcast::<Pooling>()?;
        let mut inputs = Vec::new();
        let mut constants = [None; 2];
        for (i, feed) in first.feeds.iter().enumerate() {
            let Feed::Outer { index, operand, .. } = feed else { continue };
            inputs.push(*index);
            if let Some(slot) = i.checked_sub(1).and_then(|i| constants.get_mut(i)) {
                *slot = Some(operand.constant.as_deref()?);
            }
        }
        let plain = pool.kind == PoolKind::Max
            && pool.outputs == 1
            && conv.residual == ResidualKind::None
            && [conv.layout, pool.layout] == [Layout::Nhwc; 2]
            && first.ty.dtype == DType::F32;
        if !plain || inputs.is_empty() || constants[0].is_none() {
            return None;
        }
        let shape = conv.shape(&first.operands()).ok()?;
        let flat = shape.geometry.two_dimensional()?;
        let windows = pool.geometry(&last.operands()).ok()?.two_dimensional()?;
        let params = shape.params(&flat);
        Some(Pair {
            conv,
            batch: shape.batch,
            params,
            size: flat.input,
            out: windows.output,
            windows: Pool2dParams {
                kernel: windows.kernel,
                stride: windows.strides,
                dilation: windows.dilations,
                pads: windows.pads,
            },
            constants,
            inputs,
        })
    }

    fn weight(&self) -> &'a [f32] {
        self.constants[0].and_then(|weight| weight.as_slice()).unwrap_or_default()
    }

    fn kernel(&self) -> Option<Box<dyn CpuKernel>> {
        let bias = self.constants[1].and_then(|bias| bias.as_slice());
        let kernel = SparsePooledConv2d::new(
            self.params,
            self.size,
            &self.windows,
            self.out,
            self.weight(),
            bias,
            self.conv.activation,
        )?;
        let kernel = Arc::new(kernel);
        let (batch, of, x) = (self.batch, kernel.clone(), self.inputs[0]);
        let scratch = move |threads| Scratch::bytes::<f32>(of.scratch_len(threads));
        let run = kernel_with(kernel.bytes(), scratch, move |io, pool| {
            let x = io.input(x).slice();
            let own = Scratch::new(io.scratch).take::<f32>(kernel.scratch_len(pool.threads()));
            kernel.run(batch, x, io.outputs[0].slice_mut(), own, pool);
            Ok(())
        });
        Some(packed_kernel(SPARSE, &self.inputs[1..], run))
    }

    fn faster(
        &self,
        output: &TensorType,
        others: impl Fn() -> Result<Box<dyn CpuKernel>, OpError>,
    ) -> Result<Box<dyn CpuKernel>, OpError> {
        let [h, w] = self.params.output_size(self.size[0], self.size[1]);
        let pixels = self.batch.checked_mul(h).and_then(|m| m.checked_mul(w));
        let macs = pixels.and_then(|m| m.checked_mul(self.weight().len()));
        let Some(step) = variant::sparsity(self.weight()).filter(|_| variant::matters(macs)) else {
            return others();
        };
        let Pair { params, windows, out, batch, size: [h, w], .. } = self;
        // Kernels are made for all images, and run on them; more are more of the same.
        let images = variant::images(*batch);
        let question = format!(
            "{} {:?} {params:?} {:?} {images}x{h}x{w} {windows:?} {out:?} sparsity {step}",
            isa::best(),
            self.conv.arithmetic,
            self.conv.activation,
        );
        let (mut x, mut y) = (None, None);
        let mut scratch = Storage::zeroed(0);
        let pool = Pool::single();
        variant::faster(
            question,
            [images; 2],
            |_| others(),
            |_| self.kernel().map(Ok),
            |kernel| {
                let Ok(kernel) = kernel else { return };
                let bytes = kernel.scratch_bytes(1);
                if scratch.bytes().len() < bytes {
                    scratch = Storage::zeroed(bytes);
                }
                let x: &Tensor = x.get_or_insert_with(|| {
                    let values = variant::inputs(batch * h * w * params.c_in);
                    Tensor::from_slice([*batch, *h, *w, params.c_in], &values)
                });
                let y = y.get_or_insert_with(|| Tensor::zeros(output.clone()));
                let given = [Some(x), self.constants[0], self.constants[1]];
                let mut inputs = vec![None; self.inputs.iter().max().map_or(0, |max| max + 1)];
                for (&index, tensor) in self.inputs.iter().zip(given.into_iter().flatten()) {
                    inputs[index] = Some(tensor.view());
                }
                let outputs = &mut [y.view_mut()];
                let scratch = scratch.bytes_mut();
                // A kernel that fails here fails the run, too.
                let _ = kernel.run(&mut KernelIo { inputs: &inputs, outputs, scratch }, &pool);
            },
        )
    }
}
