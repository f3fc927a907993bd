//! Convolution with any number of spatial dimensions: a plain loop, for the rare 3-d models.

use super::{Conv, ConvShape, Layout};
use crate::ops::{CpuKernel, axes, epilogue, kernel as closure};
use sparoa_kernels::activation::Residual;

/// Strides of one tensor by batch, channel and spatial axis.
struct Strides {
    batch: usize,
    channel: usize,
    spatial: Vec<usize>,
}

fn strides(layout: Layout, spatial: &[usize], channels: usize) -> Strides {
    let all = axes::strides(&layout.shape(1, spatial, channels));
    let first = layout.spatial_axis();
    let channel = all[layout.channel_axis(all.len())];
    let batch = spatial.iter().product::<usize>() * channels;
    Strides { batch, channel, spatial: all[first..first + spatial.len()].to_vec() }
}

/// The kernel of `op` for these sizes.
pub(super) fn kernel(op: Conv, shape: ConvShape) -> Box<dyn CpuKernel> {
    let g = &shape.geometry;
    let rank = g.input.len();
    let xs = strides(op.layout, &g.input, shape.c_in);
    let ys = strides(op.layout, &g.output, shape.c_out);
    let taps: usize = g.kernel.iter().product();
    let per_group = (shape.c_in / shape.groups, shape.c_out / shape.groups);
    closure(move |io, pool| {
        let g = &shape.geometry;
        let (x, w) = (io.input(0).slice::<f32>(), io.input(1).slice::<f32>());
        let bias = io.get(2).map(|b| b.slice::<f32>());
        let epilogue = epilogue::epilogue(op.activation, op.residual, io);
        let y = io.outputs[0].slice_mut::<f32>();
        const PART: usize = 256;
        pool.run_parts(y, PART, &|part, y| {
            for (i, y) in y.iter_mut().enumerate() {
                let at = part * PART + i;
                let c = at / ys.channel % shape.c_out;
                let first_in = c / per_group.1 * per_group.0;
                let base = at / ys.batch * xs.batch + first_in * xs.channel;
                let mut acc = bias.map_or(0.0, |b| b[c]);
                'taps: for tap in 0..taps {
                    let (mut rest, mut from) = (tap, base);
                    for d in (0..rank).rev() {
                        let k = rest % g.kernel[d];
                        rest /= g.kernel[d];
                        let o = at / ys.spatial[d] % g.output[d];
                        let padded = o * g.strides[d] + k * g.dilations[d];
                        match padded.checked_sub(g.begin[d]) {
                            Some(i) if i < g.input[d] => from += i * xs.spatial[d],
                            _ => continue 'taps,
                        }
                    }
                    for ci in 0..per_group.0 {
                        acc += x[from + ci * xs.channel] * w[(c * per_group.0 + ci) * taps + tap];
                    }
                }
                if let Residual::BeforeActivation(r) = epilogue.residual {
                    acc += r[at];
                }
                acc = epilogue.activation.apply(acc);
                if let Residual::AfterActivation(r) = epilogue.residual {
                    acc += r[at];
                }
                *y = acc;
            }
        });
        Ok(())
    })
}
