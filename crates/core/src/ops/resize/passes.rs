//! Interpolation one axis at a time: a pass reads a tensor and writes it resized along one axis.

use bytemuck::Pod;
use sparoa_kernels::pool::Pool;

use super::{
    CoordinateMode, Resize,
    coordinates::{Axis, Taps},
};
use crate::{
    ops::{CpuKernel, Scratch, axes, kernel_with, number::Number},
    tensor::{DType, Element},
};

/// Interpolation along one axis of a tensor seen as outer x axis x inner.
pub(super) struct Pass {
    /// Elements of the result.
    len: usize,
    inner: usize,
    input: usize,
    output: usize,
    taps: Taps,
}

/// One pass for each axis that changes, those that shrink the data first.
pub(super) fn of(op: &Resize, axes: &[Axis]) -> Vec<Pass> {
    let mut order: Vec<usize> = (0..axes.len())
        .filter(|&i| !axes[i].is_unchanged() || op.coordinates == CoordinateMode::TfCropAndResize)
        .collect();
    order.sort_by(|&a, &b| {
        let growth = |i: usize| axes[i].output as f64 / axes[i].input.max(1) as f64;
        growth(a).total_cmp(&growth(b))
    });
    let mut shape: Vec<usize> = axes.iter().map(|a| a.input).collect();
    order
        .into_iter()
        .map(|i| {
            shape[i] = axes[i].output;
            Pass {
                len: shape.iter().product(),
                inner: shape[i + 1..].iter().product(),
                input: axes[i].input,
                output: axes[i].output,
                taps: op.interpolation.taps(op.coordinates, &axes[i]),
            }
        })
        .collect()
}

impl Pass {
    /// Calls `f(outer, output index or None for all, part)` for contiguous parts of `y`.
    fn parts<T: Send>(
        &self,
        y: &mut [T],
        pool: &Pool,
        f: &(dyn Fn(usize, std::ops::Range<usize>, &mut [T]) + Sync),
    ) {
        if self.inner >= 256 {
            pool.run_parts(y, self.inner, &|i, part| {
                let at = i % self.output;
                f(i / self.output, at..at + 1, part);
            });
        } else {
            let whole = (self.output * self.inner).max(1);
            pool.run_parts(y, whole, &|outer, part| f(outer, 0..self.output, part));
        }
    }

    fn nearest<T: Pod + Send + Sync>(&self, x: &[T], y: &mut [T], pool: &Pool) {
        self.parts(y, pool, &|outer, range, part| {
            let x = &x[outer * self.input * self.inner..];
            if self.inner == 1 {
                for (y, i) in part.iter_mut().zip(range) {
                    *y = x[self.taps.index(i, 0)];
                }
                return;
            }
            for (y, i) in part.chunks_exact_mut(self.inner).zip(range) {
                let from = self.taps.index(i, 0) * self.inner;
                y.copy_from_slice(&x[from..from + self.inner]);
            }
        });
    }

    fn weighted(&self, x: &[f32], y: &mut [f32], pool: &Pool) {
        self.parts(y, pool, &|outer, range, part| {
            let x = &x[outer * self.input * self.inner..];
            for (y, i) in part.chunks_exact_mut(self.inner).zip(range) {
                y.fill(0.0);
                for tap in 0..self.taps.count() {
                    let weight = self.taps.weight(i, tap);
                    if weight == 0.0 {
                        continue;
                    }
                    let from = self.taps.index(i, tap) * self.inner;
                    for (y, x) in y.iter_mut().zip(&x[from..from + self.inner]) {
                        *y += weight * x;
                    }
                }
            }
        });
    }
}

/// Elements of the largest result between two passes.
fn between(passes: &[Pass]) -> usize {
    passes.iter().rev().skip(1).map(|p| p.len).max().unwrap_or(0)
}

/// Copies of the nearest element, by size of an element.
pub(super) fn nearest<T: Pod + Send + Sync + Element>(passes: Vec<Pass>) -> Box<dyn CpuKernel> {
    let len = between(&passes);
    let scratch = 2 * Scratch::bytes::<T>(len);
    kernel_with(
        0,
        move |_| scratch,
        move |io, pool| {
            let x: &[T] = bytemuck::cast_slice(io.input(0).bytes);
            let y: &mut [T] = bytemuck::cast_slice_mut(io.outputs[0].bytes);
            let mut scratch = Scratch::new(io.scratch);
            let held = [scratch.take::<T>(len), scratch.take::<T>(len)];
            in_turn(&passes, x, y, held, |pass, from, to| pass.nearest(from, to, pool));
            Ok(())
        },
    )
}

/// Applies the passes one after the other, from `x` through `held` to `y`.
fn in_turn<T: Pod>(
    passes: &[Pass],
    x: &[T],
    y: &mut [T],
    held: [&mut [T]; 2],
    apply: impl Fn(&Pass, &[T], &mut [T]),
) {
    let Some((last, others)) = passes.split_last() else {
        y.copy_from_slice(x);
        return;
    };
    let [mut here, mut there] = held;
    let mut len = None;
    for pass in others {
        match len {
            None => apply(pass, x, &mut there[..pass.len]),
            Some(len) => apply(pass, &here[..len], &mut there[..pass.len]),
        }
        std::mem::swap(&mut here, &mut there);
        len = Some(pass.len);
    }
    match len {
        None => apply(last, x, y),
        Some(len) => apply(last, &here[..len], y),
    }
}

/// Outputs that lie outside of the region, and their value.
pub(super) struct Outside {
    pub value: f32,
    pub outputs: Vec<usize>,
    /// By axis and output index.
    pub inside: Vec<Vec<bool>>,
}

/// Weighted sums, computed in f32; integers drop fractions, as ONNX Runtime's do.
pub(super) fn weighted<T: Number>(
    passes: Vec<Pass>,
    outside: Option<Outside>,
) -> Box<dyn CpuKernel> {
    let len = between(&passes);
    let is_f32 = T::DTYPE == DType::F32;
    let x_len = passes.first().map_or(0, |p| p.len / p.output.max(1) * p.input);
    let y_len = passes.last().map_or(0, |p| p.len);
    let (x_held, y_held) = if is_f32 { (0, 0) } else { (x_len, y_len) };
    let scratch_bytes = 2 * Scratch::bytes::<f32>(len)
        + Scratch::bytes::<f32>(x_held)
        + Scratch::bytes::<f32>(y_held);
    kernel_with(
        0,
        move |_| scratch_bytes,
        move |io, pool| {
            let input = io.input(0);
            let mut scratch = Scratch::new(io.scratch);
            let held = [scratch.take::<f32>(len), scratch.take::<f32>(len)];
            let apply = |pass: &Pass, from: &[f32], to: &mut [f32]| pass.weighted(from, to, pool);
            if is_f32 {
                let (x, y) = (input.slice::<f32>(), io.outputs[0].slice_mut::<f32>());
                in_turn(&passes, x, y, held, apply);
            } else {
                let x = input.slice::<T>();
                let y = io.outputs[0].slice_mut::<T>();
                if passes.is_empty() {
                    y.copy_from_slice(x);
                } else {
                    let (xf, yf) = (scratch.take::<f32>(x_held), scratch.take::<f32>(y_held));
                    xf.iter_mut().zip(x).for_each(|(f, v)| *f = v.to_f64() as f32);
                    in_turn(&passes, xf, yf, held, apply);
                    y.iter_mut().zip(&*yf).for_each(|(v, f)| *v = T::from_f64(f64::from(*f)));
                }
            }
            if let Some(Outside { value, outputs, inside }) = &outside {
                let strides = axes::strides(outputs);
                let y = io.outputs[0].slice_mut::<T>();
                for (at, y) in y.iter_mut().enumerate() {
                    let all = (0..outputs.len()).all(|d| inside[d][at / strides[d] % outputs[d]]);
                    if !all {
                        *y = T::from_f64(f64::from(*value));
                    }
                }
            }
            Ok(())
        },
    )
}
