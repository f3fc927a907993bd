//! The stages of Winograd's convolution for some tiles: the inputs' transform, the products of a
//! point and panel, the products' transform with the epilogue.

use std::ops::Range;

use super::transform::Transform;
use super::{Buffers, Run, Winograd};
use crate::activation::Residual;
use crate::gemm::driver::{call_tile, fetched, tiles};
use crate::gemm::micro::{Destination, Tile};
use crate::simd::{Kernel, Simd};
use crate::vmath;

/// V = B^T d B of some tiles, the first of which is V's first.
pub(super) struct Inputs<'a, T, const IN: usize, const OUT: usize> {
    pub transform: T,
    pub run: &'a Run<'a>,
    pub tiles: Range<usize>,
    pub to: Buffers,
}

impl<T: Transform<IN, OUT>, const IN: usize, const OUT: usize> Kernel for Inputs<'_, T, IN, OUT> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (w, g) = (self.run.weights, self.run.geometry);
        let (ci, pads) = (w.c_in, g.params.pads);
        let zeros = w.zeros.as_slice();
        assert!(zeros.len() >= ci);
        for (index, tile) in self.tiles.enumerate() {
            let [image, oy, ox] = self.run.place(tile);
            let mut rows = [[zeros.as_ptr(); IN]; IN];
            for (i, row) in rows.iter_mut().enumerate() {
                let iy = (oy + i).wrapping_sub(pads[0]);
                if iy >= g.h {
                    continue;
                }
                let line = &self.run.x[(image * g.h + iy) * g.w * ci..][..g.w * ci];
                for (j, pointer) in row.iter_mut().enumerate() {
                    let ix = (ox + j).wrapping_sub(pads[1]);
                    if ix < g.w {
                        *pointer = line[ix * ci..][..ci].as_ptr();
                    }
                }
            }
            let out = TileInput {
                transform: self.transform,
                rows: &rows,
                channels: ci,
                v: self.to.v.at(index * ci).ptr(),
                step: self.to.v_step,
            };
            s.call(out);
        }
    }
}

struct TileInput<'a, T, const IN: usize, const OUT: usize> {
    transform: T,
    rows: &'a [[*const f32; IN]; IN],
    channels: usize,
    v: *mut f32,
    /// From point to point.
    step: usize,
}

impl<T: Transform<IN, OUT>, const IN: usize, const OUT: usize> Kernel
    for TileInput<'_, T, IN, OUT>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut c = 0;
        while c < self.channels {
            let lanes = S::LANES.min(self.channels - c);
            let full = lanes == S::LANES;
            let mut half = [[s.splat(0.0); IN]; IN];
            for j in 0..IN {
                let mut d = [s.splat(0.0); IN];
                for (i, d) in d.iter_mut().enumerate() {
                    // SAFETY: every pointer has `channels` elements.
                    *d = unsafe {
                        let x = self.rows[i][j].add(c);
                        if full { s.load(x) } else { s.load_partial(x, lanes) }
                    };
                }
                for (i, t) in self.transform.input(s, d).into_iter().enumerate() {
                    half[i][j] = t;
                }
            }
            for (i, row) in half.into_iter().enumerate() {
                for (j, t) in self.transform.input(s, row).into_iter().enumerate() {
                    let v = self.v.wrapping_add((i * IN + j) * self.step + c);
                    // SAFETY: V has `channels` elements for each point of this tile.
                    unsafe {
                        if full {
                            s.store(v, t);
                        } else {
                            s.store_partial(v, lanes, t);
                        }
                    }
                }
            }
            c += lanes;
        }
    }
}

/// Bytes of weights that mostly stay in the second-level cache from one block of tiles to the next.
const KEPT_BYTES: usize = 1024 * 1024;

/// The products of some tiles, the first of which are V's and M's first, at one point, for a panel
/// of output channels, which are M's first.
pub(super) struct Products<'a> {
    pub weights: &'a Winograd,
    pub tiles: usize,
    pub point: usize,
    pub panel: usize,
    pub of: Buffers,
}

impl Kernel for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (w, of) = (self.weights, self.of);
        let nr = S::TILE.1 * S::LANES;
        let (ci, column) = (w.c_in, self.panel * nr);
        let nv = (w.c_out - column).min(nr).div_ceil(S::LANES);
        let (width, points) = (nv * S::LANES, w.tiling.points());
        let u = &w.weight.as_slice()[column * points * ci..][self.point * ci * width..];
        let u = &u[..ci * width];
        let v = of.v.at(self.point * of.v_step);
        let m = of.m.at(self.point * of.m_step);
        // The next point's weights lie behind this one's. Tiles of AVX-512, twice as high, gain nothing.
        let next = u.as_ptr_range().end;
        let fetches = S::LANES < 16 && w.bytes() > KEPT_BYTES;
        let fetched = if fetches { fetched(self.tiles, S::TILE.0, ci) } else { 0 };
        for (index, (row, mr)) in tiles(self.tiles, S::TILE.0).enumerate() {
            let mut rows = [std::ptr::null(); 16];
            for (r, pointer) in rows.iter_mut().enumerate().take(mr) {
                *pointer = v.at((row + r) * ci).ptr().cast_const();
            }
            let tile = Tile {
                rows: rows.as_ptr(),
                taps: 1,
                run: ci,
                offset: 0,
                b: u.as_ptr(),
                next: next.wrapping_add(index * fetched * width),
                fetched,
                to: Destination {
                    c: m.at(row * of.width).ptr(),
                    ldc: of.width,
                    bias: std::ptr::null(),
                    residual: std::ptr::null(),
                    tail: S::LANES,
                    accumulate: false,
                    finish: None,
                },
            };
            call_tile(s, mr, nv, tile);
        }
    }
}

/// The outputs of some tiles in some channels, whose products are M's first.
pub(super) struct Outputs<'a, T, const IN: usize, const OUT: usize> {
    pub transform: T,
    pub run: &'a Run<'a>,
    pub tiles: Range<usize>,
    pub channels: Range<usize>,
    pub of: Buffers,
}

impl<T: Transform<IN, OUT>, const IN: usize, const OUT: usize> Kernel for Outputs<'_, T, IN, OUT> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (index, tile) in self.tiles.enumerate() {
            s.call(TileOutput {
                transform: self.transform,
                run: self.run,
                m: self.of.m.at(index * self.of.width).ptr().cast_const(),
                step: self.of.m_step,
                corner: self.run.place(tile),
                channels: self.channels.clone(),
            });
        }
    }
}

/// y = act(A^T m A + bias + before) + after of one tile in some channels.
struct TileOutput<'a, T, const IN: usize, const OUT: usize> {
    transform: T,
    run: &'a Run<'a>,
    m: *const f32,
    step: usize,
    /// Image, first row, first column.
    corner: [usize; 3],
    channels: Range<usize>,
}

impl<T: Transform<IN, OUT>, const IN: usize, const OUT: usize> Kernel
    for TileOutput<'_, T, IN, OUT>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (run, g) = (self.run, self.run.geometry);
        let co = run.weights.c_out;
        let [image, oy, ox] = self.corner;
        let (before, after) = match run.epi.residual {
            Residual::None => (None, None),
            Residual::BeforeActivation(r) => (Some(r), None),
            Residual::AfterActivation(r) => (None, Some(r)),
        };
        let mut c = 0;
        while c < self.channels.len() {
            let lanes = S::LANES.min(self.channels.len() - c);
            let channel = self.channels.start + c;
            let mut half = [[s.splat(0.0); IN]; OUT];
            for j in 0..IN {
                let mut points = [s.splat(0.0); IN];
                for (i, point) in points.iter_mut().enumerate() {
                    // SAFETY: M has whole vectors for each point of this tile.
                    *point = unsafe { s.load(self.m.add((i * IN + j) * self.step + c)) };
                }
                for (i, t) in self.transform.output(s, points).into_iter().enumerate() {
                    half[i][j] = t;
                }
            }
            // SAFETY: bias has c_out elements, y and the residuals as many per pixel; `lanes`
            // from `channel` on exist. This task alone writes this tile's pixels and channels.
            unsafe {
                let bias = match run.bias {
                    Some(bias) => s.load_partial(bias.as_ptr().add(channel), lanes),
                    None => s.splat(0.0),
                };
                for (i, row) in half.into_iter().enumerate().take(g.oh - oy) {
                    for (j, t) in
                        self.transform.output(s, row).into_iter().enumerate().take(g.ow - ox)
                    {
                        let at = ((image * g.oh + oy + i) * g.ow + ox + j) * co + channel;
                        let mut t = s.add(t, bias);
                        if let Some(r) = before {
                            t = s.add(t, s.load_partial(r.as_ptr().add(at), lanes));
                        }
                        t = vmath::activate(s, run.epi.activation, t);
                        if let Some(r) = after {
                            t = s.add(t, s.load_partial(r.as_ptr().add(at), lanes));
                        }
                        s.store_partial(run.y.ptr().add(at), lanes, t);
                    }
                }
            }
            c += lanes;
        }
    }
}
