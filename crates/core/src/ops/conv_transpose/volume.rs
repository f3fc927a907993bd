//! Transposed convolution with any number of spatial dimensions: a plain loop.

use super::ConvTranspose;
use crate::ops::{CpuKernel, conv::ConvShape, kernel as closure};

/// The kernel of `op` for these sizes.
pub(super) fn kernel(op: &ConvTranspose, shape: ConvShape) -> Box<dyn CpuKernel> {
    let xs = op.layout.strides(&shape.geometry.input, shape.c_in);
    let ys = op.layout.strides(&shape.geometry.output, shape.c_out);
    let taps: usize = shape.geometry.kernel.iter().product();
    let (group_in, group_out) = (shape.c_in / shape.groups, shape.c_out / shape.groups);
    let activation = op.activation;
    closure(move |io, pool| {
        let (x, w) = (io.input(0).slice::<f32>(), io.input(1).slice::<f32>());
        let bias = io.get(2).map(|b| b.slice::<f32>());
        const PART: usize = 256;
        pool.run_parts(io.outputs[0].slice_mut::<f32>(), PART, &|part, y| {
            for (i, y) in y.iter_mut().enumerate() {
                let at = part * PART + i;
                let c = ys.channel_of(at);
                let first = c / group_out * group_in;
                let base = ys.batch_of(at) * xs.batch;
                let mut acc = bias.map_or(0.0, |b| b[c]);
                for tap in 0..taps {
                    let source = source(&shape, tap, |d| ys.spatial_of(at, d), &xs.spatial);
                    let Some(from) = source else { continue };
                    for ci in first..first + group_in {
                        acc += x[base + from + ci * xs.channel]
                            * w[(ci * group_out + c % group_out) * taps + tap];
                    }
                }
                *y = activation.apply(acc);
            }
        });
        Ok(())
    })
}

/// Offset of the input element that reaches output index `output(d)` through `tap`.
fn source(
    shape: &ConvShape,
    tap: usize,
    output: impl Fn(usize) -> usize,
    strides: &[usize],
) -> Option<usize> {
    let g = &shape.geometry;
    let (mut rest, mut offset) = (tap, 0);
    for d in (0..strides.len()).rev() {
        let k = rest % g.kernel[d];
        rest /= g.kernel[d];
        let reached = (output(d) + g.begin[d]).checked_sub(k * g.dilations[d])?;
        let i = reached / g.strides[d];
        if reached % g.strides[d] != 0 || i >= g.input[d] {
            return None;
        }
        offset += i * strides[d];
    }
    Some(offset)
}
