//! Depthwise convolution: vectors of channels, blocks of output columns in registers.

pub(crate) mod sliding;

use std::ops::Range;

use crate::activation::{Epilogue, Residual};
use crate::aligned::{AlignedBuffer, SharedMut};
use crate::conv::Conv2dParams;
use crate::conv::indirect::Geometry;
use crate::gemm::driver::tiles;
use crate::gemm::micro::{Finish, SecondPass};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::simd::{self, Kernel, MAX_LANES, Simd};

/// Larger kernels go another way.
pub(crate) const MAX_TAPS: usize = 128;
/// Output columns computed at once.
const COLUMNS: usize = 8;

/// Weights as one row of c_out per tap, rows padded to whole vectors.
#[derive(Clone, Debug)]
pub(crate) struct Depthwise {
    weight: AlignedBuffer,
    stride: usize,
    zeros: AlignedBuffer,
}

/// A tap of a block of columns.
#[derive(Clone, Copy)]
struct Tap {
    /// Input of the block's first column (may lie outside where `valid` excludes it).
    x: *const f32,
    weight: *const f32,
    /// The columns for which the tap lies inside the image.
    first: usize,
    last: usize,
}

impl Depthwise {
    pub(crate) fn new(p: &Conv2dParams, weight: &[f32]) -> Depthwise {
        let taps = p.kernel[0] * p.kernel[1];
        let stride = p.c_out.next_multiple_of(MAX_LANES);
        let mut packed = AlignedBuffer::zeroed(stride * taps);
        for tap in 0..taps {
            for c in 0..p.c_out {
                packed.as_mut_slice()[tap * stride + c] = weight[c * taps + tap];
            }
        }
        Depthwise { weight: packed, stride, zeros: AlignedBuffer::zeroed(p.c_in) }
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(self.weight.as_slice())
    }

    /// Output row `row` (of all images'), where [`sliding::fits`]: `x` begins at input row
    /// `first`, the result is row `out` of the store.
    pub(crate) fn row<'a>(
        &'a self,
        geometry: &'a Geometry,
        x: &'a [f32],
        first: usize,
        row: usize,
        out: usize,
        store: &'a Store<'a>,
    ) -> sliding::Row<'a> {
        sliding::Row {
            geometry,
            x,
            first,
            weights: self.weight.as_slice(),
            stride: self.stride,
            zeros: self.zeros.as_slice(),
            row,
            out,
            store,
        }
    }

    pub(crate) fn run(
        &self,
        isa: Isa,
        n: usize,
        geometry: &Geometry,
        x: &[f32],
        bias: Option<&[f32]>,
        epi: &Epilogue<'_>,
        y: &mut [f32],
        pool: &Pool,
    ) {
        let rows = n * geometry.oh;
        let macs = y.len() * geometry.params.kernel[0] * geometry.params.kernel[1];
        let wanted = if pool.threads() == 1 { 1 } else { (4 * pool.threads()).min(macs >> 15) };
        let tasks = wanted.clamp(1, rows);
        let store = Store::new(geometry.params.c_out, bias, epi, SharedMut::new(y));
        pool.run(tasks, &|task| {
            let rows = task * rows / tasks..(task + 1) * rows / tasks;
            simd::dispatch(isa, RowsOf { weights: self, geometry, x, store: &store, rows });
        });
    }
}

/// What becomes of the sums: bias, residual, activation, and where they go.
pub(crate) struct Store<'a> {
    c_out: usize,
    bias: Option<&'a [f32]>,
    residual: Option<&'a [f32]>,
    finish: Finish,
    y: SharedMut,
}

impl<'a> Store<'a> {
    pub(crate) fn new(
        c_out: usize,
        bias: Option<&'a [f32]>,
        epi: &Epilogue<'a>,
        y: SharedMut,
    ) -> Store<'a> {
        let residual = match epi.residual {
            Residual::None => None,
            Residual::BeforeActivation(r) | Residual::AfterActivation(r) => Some(r),
        };
        Store { c_out, bias, residual, finish: Finish::new(1.0, bias.is_some(), epi), y }
    }

    /// Stores channels c .. c + lanes of W pixels.
    #[inline(always)]
    fn columns<S: Simd, const W: usize, const FULL: bool>(
        &self,
        s: S,
        pixel: usize,
        c: usize,
        lanes: usize,
        mut acc: [S::V; W],
    ) {
        // SAFETY: bias has c_out elements, residual and y as many per pixel; `lanes` from c on
        // exist. The pixels of y are this task's.
        unsafe {
            let load = |p: *const f32| if FULL { s.load(p) } else { s.load_partial(p, lanes) };
            if let Some(bias) = self.bias {
                let bias = load(bias.as_ptr().add(c));
                for acc in &mut acc {
                    *acc = s.add(*acc, bias);
                }
            }
            for (w, acc) in acc.iter_mut().enumerate() {
                let at = (pixel + w) * self.c_out + c;
                let residual = self.residual.map_or(s.splat(0.0), |r| load(r.as_ptr().add(at)));
                if self.finish.before {
                    *acc = s.add(*acc, residual);
                }
                *acc = self.finish.activate(s, *acc);
                if self.finish.after && self.finish.slow.is_none() {
                    *acc = s.add(*acc, residual);
                }
                let y = self.y.ptr().add(at);
                if FULL {
                    s.store(y, *acc);
                } else {
                    s.store_partial(y, lanes, *acc);
                }
            }
        }
    }

    /// What of the epilogue is left once all channels of `pixels` pixels are stored.
    #[inline(always)]
    fn second_pass<S: Simd>(&self, s: S, pixel: usize, pixels: usize) {
        let Some(act) = self.finish.slow else { return };
        let at = pixel * self.c_out;
        let residual = self.residual.filter(|_| self.finish.after);
        s.call(SecondPass {
            act,
            c: self.y.ptr().wrapping_add(at),
            residual: residual.map_or(std::ptr::null(), |r| r[at..].as_ptr()),
            ldc: self.c_out,
            rows: pixels,
            columns: self.c_out,
        });
    }
}

/// Some rows of the output.
struct RowsOf<'a> {
    weights: &'a Depthwise,
    geometry: &'a Geometry,
    x: &'a [f32],
    store: &'a Store<'a>,
    rows: Range<usize>,
}

impl Kernel for RowsOf<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let g = self.geometry;
        let p = &g.params;
        let weights = self.weights.weight.as_slice();
        if sliding::fits(p) {
            for row in self.rows {
                self.weights.row(g, self.x, 0, row, row, self.store).run(s);
            }
            return;
        }
        let step = p.stride[1] * p.c_in;
        let none = std::ptr::null();
        let mut taps = [Tap { x: none, weight: none, first: 0, last: 0 }; MAX_TAPS];
        for row in self.rows {
            let (image, oy) = (row / g.oh, row % g.oh);
            for (ox, columns) in tiles(g.ow, COLUMNS) {
                // Columns whose taps all lie inside the image need no bounds.
                let left = ox * p.stride[1];
                let right = left + (columns - 1) * p.stride[1] + (p.kernel[1] - 1) * p.dilation[1];
                let inside = left >= p.pads[1] && right < g.w + p.pads[1];
                let mut count = 0;
                for ky in 0..p.kernel[0] {
                    let iy = (oy * p.stride[0] + ky * p.dilation[0]).wrapping_sub(p.pads[0]);
                    if iy >= g.h {
                        continue;
                    }
                    for kx in 0..p.kernel[1] {
                        // Column c reads input column left + c * stride - pad.
                        let left = left + kx * p.dilation[1];
                        let (mut first, mut last) = (0, columns);
                        if !inside {
                            first = p.pads[1].saturating_sub(left).div_ceil(p.stride[1]);
                            let right = (g.w + p.pads[1]).saturating_sub(left);
                            last = right.div_ceil(p.stride[1]).min(columns);
                        }
                        if first >= last {
                            continue;
                        }
                        let at = ((image * g.h + iy) * g.w + left).wrapping_sub(p.pads[1]);
                        taps[count] = Tap {
                            // Possibly before x, for a first column that is then not read.
                            x: self.x.as_ptr().wrapping_add(at.wrapping_mul(p.c_in)),
                            weight: weights[(ky * p.kernel[1] + kx) * self.weights.stride..]
                                .as_ptr(),
                            first,
                            last,
                        };
                        count += 1;
                    }
                }
                let block = ColumnBlock {
                    taps: &taps[..count],
                    step,
                    multiplier: p.c_out / p.c_in,
                    store: self.store,
                    pixel: row * g.ow + ox,
                };
                match columns {
                    1 => s.call(Columns::<1>(block)),
                    2 => s.call(Columns::<2>(block)),
                    3 => s.call(Columns::<3>(block)),
                    4 => s.call(Columns::<4>(block)),
                    5 => s.call(Columns::<5>(block)),
                    6 => s.call(Columns::<6>(block)),
                    7 => s.call(Columns::<7>(block)),
                    _ => s.call(Columns::<8>(block)),
                }
            }
        }
    }
}

struct ColumnBlock<'a> {
    taps: &'a [Tap],
    step: usize,
    multiplier: usize,
    store: &'a Store<'a>,
    /// The first output pixel.
    pixel: usize,
}

struct Columns<'a, const W: usize>(ColumnBlock<'a>);

impl<const W: usize> Kernel for Columns<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let b = &self.0;
        let mut c = 0;
        while c < b.store.c_out {
            let lanes = S::LANES.min(b.store.c_out - c);
            let full = lanes == S::LANES;
            let mut acc = [s.splat(0.0); W];
            if b.multiplier == 1 && full {
                for tap in b.taps {
                    // SAFETY: the weights of a tap are padded to whole vectors.
                    let weight = unsafe { s.load(tap.weight.add(c)) };
                    if tap.first == 0 && tap.last == W {
                        for (w, acc) in acc.iter_mut().enumerate() {
                            // SAFETY: all columns of the tap lie inside the image.
                            let x = unsafe { s.load(tap.x.add(w * b.step + c)) };
                            *acc = s.mul_add(x, weight, *acc);
                        }
                    } else {
                        for (w, acc) in acc.iter_mut().enumerate() {
                            if w >= tap.first && w < tap.last {
                                // SAFETY: this column of the tap lies inside the image.
                                let x = unsafe { s.load(tap.x.wrapping_add(w * b.step + c)) };
                                *acc = s.mul_add(x, weight, *acc);
                            }
                        }
                    }
                }
            } else {
                for tap in b.taps {
                    // SAFETY: the weights of a tap are padded to whole vectors.
                    let weight = unsafe { s.load(tap.weight.add(c)) };
                    for (w, acc) in acc.iter_mut().enumerate() {
                        if w >= tap.first && w < tap.last {
                            let mut values = [0.0; MAX_LANES];
                            for (i, value) in values.iter_mut().enumerate().take(lanes) {
                                let at = w * b.step + (c + i) / b.multiplier;
                                // SAFETY: this column of the tap lies inside the image.
                                *value = unsafe { *tap.x.wrapping_add(at) };
                            }
                            // SAFETY: MAX_LANES elements.
                            let x = unsafe { s.load(values.as_ptr()) };
                            *acc = s.mul_add(x, weight, *acc);
                        }
                    }
                }
            }
            if full {
                b.store.columns::<S, W, true>(s, b.pixel, c, lanes, acc);
            } else {
                b.store.columns::<S, W, false>(s, b.pixel, c, lanes, acc);
            }
            c += lanes;
        }
        b.store.second_pass(s, b.pixel, W);
    }
}
