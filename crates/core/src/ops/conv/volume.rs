//! Convolution with any number of spatial dimensions: a plain loop, for the rare 3-d models.

use sparoa_kernels::activation::Residual;

use super::{Conv, ConvShape};
use crate::ops::{CpuKernel, epilogue, kernel as closure};

/// The kernel of `op` for these sizes.
pub(super) fn kernel(op: Conv, shape: ConvShape) -> Box<dyn CpuKernel> {
    let xs = op.layout.strides(&shape.geometry.input, shape.c_in);
    let ys = op.layout.strides(&shape.geometry.output, shape.c_out);
    let taps: usize = shape.geometry.kernel.iter().product();
    let (group_in, group_out) = (shape.c_in / shape.groups, shape.c_out / shape.groups);
    closure(move |io, pool| {
        let (x, w) = (io.input(0).slice::<f32>(), io.input(1).slice::<f32>());
        let bias = io.get(2).map(|b| b.slice::<f32>());
        let epilogue = epilogue::epilogue(op.activation, op.residual, io);
        const PART: usize = 256;
        pool.run_parts(io.outputs[0].slice_mut::<f32>(), PART, &|part, y| {
            for (i, y) in y.iter_mut().enumerate() {
                let at = part * PART + i;
                let c = ys.channel_of(at);
                let first_in = c / group_out * group_in;
                let base = ys.batch_of(at) * xs.batch + first_in * xs.channel;
                let mut acc = bias.map_or(0.0, |b| b[c]);
                for (tap, from) in shape.geometry.taps(|d| ys.spatial_of(at, d), &xs.spatial) {
                    for ci in 0..group_in {
                        acc +=
                            x[base + from + ci * xs.channel] * w[(c * group_in + ci) * taps + tap];
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
