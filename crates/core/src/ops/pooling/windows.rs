//! Pools by a plain loop: any number of spatial dimensions, other element types, indices, norms.

use super::{PoolKind, Pooling};
use crate::ops::{
    CpuKernel, OpError, Operands, kernel as closure,
    number::{Number, for_dtype},
    window::Geometry,
};

/// The kernel of `op` for these sizes.
pub(super) fn kernel(
    op: &Pooling,
    g: Geometry,
    channels: usize,
    x: &Operands<'_>,
) -> Result<Box<dyn CpuKernel>, OpError> {
    let dtype = x.output(0).dtype;
    Ok(match op.kind {
        PoolKind::Max => {
            for_dtype!(dtype, T in [F32, F64, I8, U8, I32, I64] => max::<T>(op, g, channels))
        }
        PoolKind::Average { count_include_pad } => for_dtype!(dtype, T in [F32, F64] => {
            fold::<T>(op, g, channels, move |values, padded| {
                let (sum, count) = values.fold((0.0, 0), |(s, n), v| (s + v, n + 1));
                sum / if count_include_pad { padded } else { count } as f64
            })
        }),
        PoolKind::Lp { p } => for_dtype!(dtype, T in [F32, F64] => {
            let p = f64::from(p);
            fold::<T>(op, g, channels, move |values, _| {
                values.map(|v| v.abs().powf(p)).sum::<f64>().powf(1.0 / p)
            })
        }),
    })
}

/// Every output is `f` of the values in its window and the window's size inside the padded input.
fn fold<T: Number>(
    op: &Pooling,
    g: Geometry,
    channels: usize,
    f: impl Fn(&mut dyn Iterator<Item = f64>, usize) -> f64 + Send + Sync + 'static,
) -> Box<dyn CpuKernel> {
    let xs = op.layout.strides(&g.input, channels);
    let ys = op.layout.strides(&g.output, channels);
    closure(move |io, pool| {
        let x = io.input(0).slice::<T>();
        pool.run_parts(io.outputs[0].slice_mut::<T>(), PART, &|part, y| {
            for (i, y) in y.iter_mut().enumerate() {
                let at = part * PART + i;
                let base = ys.batch_of(at) * xs.batch + ys.channel_of(at) * xs.channel;
                let output = |d| ys.spatial_of(at, d);
                let mut taps = g.taps(output, &xs.spatial).map(|(_, i)| x[base + i].to_f64());
                *y = T::from_f64(f(&mut taps, g.padded_taps(output)));
            }
        });
        Ok(())
    })
}

/// Elements per task.
const PART: usize = 256;

fn max<T: Number>(op: &Pooling, g: Geometry, channels: usize) -> Box<dyn CpuKernel> {
    let xs = op.layout.strides(&g.input, channels);
    let ys = op.layout.strides(&g.output, channels);
    let best = move |x: &[T], at: usize| {
        let base = ys.batch_of(at) * xs.batch + ys.channel_of(at) * xs.channel;
        let mut best = (T::LEAST, None);
        for (_, i) in g.taps(|d| ys.spatial_of(at, d), &xs.spatial) {
            let v = x[base + i];
            if best.1.is_none() || v > best.0 || v.is_nan() {
                best = (v, Some(base + i));
            }
        }
        best
    };
    let column_major = op.column_major;
    closure(move |io, pool| {
        let shape = io.input(0).shape;
        let x = io.input(0).slice::<T>();
        let (values, indices) = io.outputs.split_at_mut(1);
        pool.run_parts(values[0].slice_mut::<T>(), PART, &|part, y| {
            for (i, y) in y.iter_mut().enumerate() {
                *y = best(x, part * PART + i).0;
            }
        });
        if let Some(indices) = indices.first_mut() {
            pool.run_parts(indices.slice_mut::<i64>(), PART, &|part, y| {
                for (i, y) in y.iter_mut().enumerate() {
                    let at = best(x, part * PART + i).1.unwrap_or(0);
                    let at = if column_major { column_major_index(at, &shape[2..]) } else { at };
                    *y = i64::try_from(at).unwrap_or(i64::MAX);
                }
            });
        }
        Ok(())
    })
}

/// The index, counted with the first spatial dimension running fastest, of row-major `at`.
fn column_major_index(at: usize, spatial: &[usize]) -> usize {
    let pixels: usize = spatial.iter().product();
    let mut rest = at % pixels;
    let (mut index, mut stride) = (at - rest, pixels);
    for &size in spatial.iter().rev() {
        stride /= size;
        index += rest % size * stride;
        rest /= size;
    }
    index
}
