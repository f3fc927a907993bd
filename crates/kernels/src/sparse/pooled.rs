//! A convolution with sparse weights, an activation, and the maximum over windows of the result, in
//! one: what lies between is never transposed back to pixels, nor leaves the second-level cache.
//!
//! Each lane has a range of the output's columns, as wide in all lanes and a multiple of the
//! windows' step. A band is the rows that one row of windows is the first to need; those that it
//! shares with the band before are kept. A window that begins in the columns of the lane before
//! reads them one lane further.

use std::ops::Range;

use crate::activation::{Activation, Epilogue};
use crate::aligned::{SharedMut, align_scratch};
use crate::conv::indirect::Geometry;
use crate::conv::{Conv2dParams, check_images};
use crate::gemm::micro::Finish;
use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::pooling::{Pool2dParams, larger};
use crate::simd::{self, Kernel, MAX_LANES, Simd};
use crate::sparse::compressed::Compressed;
use crate::sparse::conv::compress;
use crate::sparse::grid::{Grid, even_width};
use crate::sparse::kernel::{GROUP, Output, Tile, most_vectors};

/// Floats of input that are laid out at once: with the rows kept they stay in the second-level
/// cache.
const SLAB_LEN: usize = 64 * 1024;
/// Bands below which a task is not worth handing to another thread, which makes one more of them.
const TASK_BANDS: usize = 8;
/// Rows of a window at most: twice those of a tile.
const MAX_LINES: usize = 8;
/// No place in the slab.
const NONE: u32 = u32::MAX;

/// See the module. For images of one size.
#[derive(Clone, Debug)]
pub struct SparsePooledConv2d {
    params: Conv2dParams,
    isa: Isa,
    /// Height and width of the images, of the convolution's result, and of the output.
    size: [usize; 2],
    between: [usize; 2],
    out: [usize; 2],
    /// Step of the windows, and how far each begins before the rows and columns that it is the
    /// first to need.
    step: [usize; 2],
    before: [usize; 2],
    grid: Grid,
    weights: Compressed,
    bias: Option<Vec<f32>>,
    activation: Activation,
    /// Of each remainder of the input's rows and each float of a lane's part of a row, where it
    /// goes in the slab, if a tap reads it.
    places: Vec<Vec<u32>>,
}

impl SparsePooledConv2d {
    /// Compresses `weight` (ONNX order: c_out, c_in, kernel height, kernel width) for images of
    /// `size` (height, width), whose convolution is pooled to `out`. `None` where there is no such
    /// kernel: for groups, for activations that take a second pass, and unless windows reach as
    /// far before their step as they are padded (as 3 x 3 with a step of 2 and a padding of 1).
    pub fn new(
        params: Conv2dParams,
        size: [usize; 2],
        windows: &Pool2dParams,
        out: [usize; 2],
        weight: &[f32],
        bias: Option<&[f32]>,
        activation: Activation,
    ) -> Option<SparsePooledConv2d> {
        let isa = isa::best();
        SparsePooledConv2d::new_with_isa(isa, params, size, windows, out, weight, bias, activation)
    }

    /// [`SparsePooledConv2d::new`] for a given instruction set, which must be available.
    pub fn new_with_isa(
        isa: Isa,
        params: Conv2dParams,
        size: [usize; 2],
        windows: &Pool2dParams,
        out: [usize; 2],
        weight: &[f32],
        bias: Option<&[f32]>,
        activation: Activation,
    ) -> Option<SparsePooledConv2d> {
        assert!(isa.is_available(), "the instruction set is available");
        params.check(weight.len(), bias.map(<[f32]>::len));
        let [h, w] = size;
        let between = params.output_size(h, w);
        let step = windows.stride;
        let before = [windows.pads[0], windows.pads[1]];
        let known = |i: usize| windows.kernel[i] == step[i] + before[i] && before[i] <= step[i];
        let fits = params.groups == 1
            && windows.dilation == [1, 1]
            && known(0)
            && known(1)
            && Finish::new(1.0, false, &Epilogue::activation(activation)).slow.is_none()
            && between.iter().chain(&out).all(|&d| d > 0);
        let (lanes, _, _) = simd::tile_of(isa);
        let most = most_vectors(isa) / step[0].max(1);
        if !fits || ![1, 2, 4].contains(&step[0]) || most == 0 {
            return None;
        }
        // Tiles as wide as fit, a whole number of them and of the windows' steps.
        let wide = between[1].max(out[1].checked_mul(step[1])?).div_ceil(lanes);
        let even = |columns: &usize| columns.is_multiple_of(step[1]);
        let (tile, columns) = (wide..wide + most * step[1])
            .filter(even)
            .map(|columns| (even_width(columns, most), columns))
            .find(|(tile, columns)| columns.is_multiple_of(*tile))?;
        // As if there were as many rows and columns as bands and lanes have.
        let rows = out[0].checked_mul(step[0])?;
        let geometry = Geometry { params, h, w, oh: rows, ow: columns * lanes };
        let tile = [step[0], tile];
        let ci = params.c_in;
        let mut grid = Grid::cut(geometry, lanes, [1, 1, lanes], 0, tile, 1, ci, false)?;
        grid.cut_strips(grid.strip, ci, SLAB_LEN);
        let weights = compress(&grid, [params.c_out, ci], weight);
        let run = grid.pitch * params.stride[1] * ci;
        let place = |row: usize, float: usize| {
            let (column, channel) = (float / ci, float % ci);
            let remainder = [row, column % params.stride[1]];
            let plane = grid.planes.iter().position(|&plane| plane == remainder);
            plane.map_or(NONE, |plane| {
                let position = (channel * grid.planes.len() + plane) * grid.slab;
                ((position + column / params.stride[1]) * lanes) as u32
            })
        };
        let places = |row| (0..run).map(|float| place(row, float)).collect();
        Some(SparsePooledConv2d {
            params,
            isa,
            size,
            between,
            out,
            step,
            before,
            weights,
            bias: bias.map(<[f32]>::to_vec),
            activation,
            places: (0..params.stride[0]).map(places).collect(),
            grid,
        })
    }

    /// Size of the compressed weights in memory.
    pub fn bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// How many elements of scratch [`SparsePooledConv2d::run`] needs on a pool of `threads`.
    pub fn scratch_len(&self, threads: usize) -> usize {
        16 + threads * self.layout().iter().sum::<usize>()
    }

    /// Elements of a thread's scratch: a group's columns of windows' rows, the sums of two bands,
    /// a padded line of the input, the slab.
    fn layout(&self) -> [usize; 5] {
        let lanes = self.grid.lanes;
        let columns = MAX_LANES + GROUP * self.columns() * lanes;
        let sums = self.params.c_out.div_ceil(GROUP) * self.group_len();
        let slab = self.params.c_in * self.grid.planes.len() * self.grid.slab * lanes;
        [columns, sums, sums, self.line_len(), slab].map(|len| len.next_multiple_of(16))
    }

    /// Columns of a lane.
    #[inline(always)]
    fn columns(&self) -> usize {
        self.grid.tiles * self.grid.tile[1]
    }

    /// Sums of a group of output channels for a band.
    fn group_len(&self) -> usize {
        GROUP * self.grid.tiles * self.grid.tile_len()
    }

    /// Floats from a lane's part of a line to the next one's.
    fn lane_len(&self) -> usize {
        self.columns() * self.params.stride[1] * self.params.c_in
    }

    /// Floats of a padded line of the input: what the last lane reads, in whole vectors.
    fn line_len(&self) -> usize {
        let lanes = self.grid.lanes;
        (lanes - 1) * self.lane_len() + self.places[0].len().next_multiple_of(lanes)
    }

    /// y = max of activation(conv(x) + bias) over each window. x: n, h, w, c_in; y: n, out h,
    /// out w, c_out. Padding never wins, NaN does.
    pub fn run(&self, n: usize, x: &[f32], y: &mut [f32], scratch: &mut [f32], pool: &Pool) {
        let p = &self.params;
        let [h, w] = self.size;
        let [oh, ow] = self.out;
        check_images(n, [h, w, p.c_in], [oh, ow, p.c_out], x.len(), y.len());
        let threads = pool.threads();
        assert!(scratch.len() >= self.scratch_len(threads), "scratch has scratch_len elements");
        let scratch = SharedMut::new(align_scratch(scratch));
        let y = SharedMut::new(y);
        let per_worker = self.layout().iter().sum();
        let parts = (1..threads).find(|parts| (n * parts).is_multiple_of(threads));
        let parts = parts.unwrap_or(threads).min(oh / TASK_BANDS).max(1);
        pool.run_with_worker(n * parts, &|task, worker| {
            let (image, part) = (task / parts, task % parts);
            let bands = part * oh / parts..(part + 1) * oh / parts;
            // SAFETY: each worker has its own part, and runs one task at a time.
            let scratch = unsafe { scratch.slice(worker * per_worker, per_worker) };
            let x = &x[image * h * w * p.c_in..][..h * w * p.c_in];
            let y = y.at(image * oh * ow * p.c_out);
            simd::dispatch(self.isa, Bands { conv: self, x, y, bands, scratch });
        });
    }
}

/// Some rows of windows of an image.
struct Bands<'a> {
    conv: &'a SparsePooledConv2d,
    x: &'a [f32],
    y: SharedMut,
    bands: Range<usize>,
    scratch: &'a mut [f32],
}

impl Kernel for Bands<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (conv, grid) = (self.conv, &self.conv.grid);
        assert!(grid.lanes == S::LANES && self.bands.end <= conv.out[0]);
        let [columns, sums, _, line, _] = conv.layout();
        let (columns, rest) = self.scratch.split_at_mut(columns);
        let (mut before, rest) = rest.split_at_mut(sums);
        let (mut sums, rest) = rest.split_at_mut(sums);
        let (line, slab) = rest.split_at_mut(line);
        line.fill(0.0);
        let epilogue = Epilogue::activation(conv.activation);
        let c_out = conv.params.c_out;
        let output = Output::new(conv.bias.as_deref(), &epilogue, self.y, false, c_out, 0);
        let channel_len = grid.planes.len() * grid.slab * S::LANES;
        // Of the band before, the rows that windows share with it.
        let shares = conv.before[0] > 0 && self.bands.start > 0;
        let mut there = 0..0;
        for band in self.bands.start - usize::from(shares)..self.bands.end {
            if band >= there.end {
                there = band..self.bands.end.min(band + grid.strip);
                s.call(Fill {
                    conv,
                    x: self.x,
                    bands: there.clone(),
                    line: &mut *line,
                    slab: &mut *slab,
                });
            }
            let row = (band - there.start) * conv.step[0] * grid.pitch;
            for (group, sums) in sums.chunks_exact_mut(conv.group_len()).enumerate() {
                let rows = group * GROUP..c_out.min((group + 1) * GROUP);
                for (index, sums) in sums.chunks_exact_mut(GROUP * grid.tile_len()).enumerate() {
                    Tile {
                        grid,
                        n: 1,
                        weights: &conv.weights,
                        rows: rows.clone(),
                        band,
                        index,
                        x: slab[(row + index * grid.tile[1]) * S::LANES..].as_ptr(),
                        line: grid.pitch * S::LANES,
                        channel_len,
                        sums,
                        keeps_sums: true,
                        output: &output,
                    }
                    .run(s);
                }
                if band >= self.bands.start {
                    let at = group * conv.group_len();
                    let before = &before[at..][..conv.group_len()];
                    let y = self.y.at(band * conv.out[1] * c_out + rows.start);
                    let (lanes, columns) = (rows.len(), &mut *columns);
                    s.call(Windows { conv, band, lanes, before, sums, columns, y });
                }
            }
            std::mem::swap(&mut before, &mut sums);
        }
    }
}

/// Lays out what some bands read.
struct Fill<'a> {
    conv: &'a SparsePooledConv2d,
    x: &'a [f32],
    bands: Range<usize>,
    /// Zeros where there is padding.
    line: &'a mut [f32],
    slab: &'a mut [f32],
}

impl Kernel for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (conv, grid) = (self.conv, &self.conv.grid);
        let p = &conv.params;
        let [h, w] = conv.size;
        let rows = grid.span(&self.bands).len() / grid.pitch;
        let first = self.bands.start * conv.step[0] * p.stride[0];
        let left = self.line.len().min(p.pads[1] * p.c_in);
        let image = (w * p.c_in).min(self.line.len() - left);
        let lane = conv.lane_len();
        let last = rows.saturating_sub(1) * grid.pitch * S::LANES;
        let end = conv.places.iter().flatten().filter(|&&place| place != NONE).max();
        assert!(end.is_none_or(|&end| self.slab.len() >= end as usize + last + S::LANES));
        assert!(self.line.len() >= conv.line_len());
        for row in 0..rows * p.stride[0] {
            let out = row / p.stride[0] * grid.pitch * S::LANES;
            let y = (first + row).wrapping_sub(p.pads[0]);
            let places = &conv.places[row % p.stride[0]];
            if y >= h {
                for &place in places.iter().filter(|&&place| place != NONE) {
                    self.slab[place as usize + out..][..S::LANES].fill(0.0);
                }
                continue;
            }
            self.line[left..][..image].copy_from_slice(&self.x[y * w * p.c_in..][..image]);
            for (i, places) in places.chunks(S::LANES).enumerate() {
                let mut square = [s.splat(0.0); MAX_LANES];
                for (l, v) in square[..S::LANES].iter_mut().enumerate() {
                    // SAFETY: a line has the parts of all lanes, in whole vectors.
                    *v = unsafe { s.load(self.line.as_ptr().add(l * lane + i * S::LANES)) };
                }
                s.transpose(&mut square);
                for (&place, &v) in places.iter().zip(&square).filter(|(p, _)| **p != NONE) {
                    // SAFETY: asserted above: the slab has every place in every row.
                    unsafe { s.store(self.slab.as_mut_ptr().add(place as usize + out), v) };
                }
            }
        }
    }
}

/// A row of windows of a group of channels.
struct Windows<'a> {
    conv: &'a SparsePooledConv2d,
    band: usize,
    /// Channels.
    lanes: usize,
    /// Sums of the band before and of this one.
    before: &'a [f32],
    sums: &'a [f32],
    columns: &'a mut [f32],
    y: SharedMut,
}

impl Kernel for Windows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (conv, grid) = (self.conv, &self.conv.grid);
        let ([rows, width], [kept, left]) = (grid.tile, conv.before);
        let (lanes, tile, wide) = (S::LANES, grid.tile_len(), conv.columns());
        assert!(self.before.len() >= conv.group_len() && self.sums.len() >= conv.group_len());
        assert!(self.columns.len() >= MAX_LANES + GROUP * wide * lanes && kept <= rows);
        assert!(tile == rows * width * lanes && grid.lanes == lanes);
        let columns = &mut self.columns[MAX_LANES..];
        let old = if self.band > 0 { rows - kept..rows } else { 0..0 };
        let new = conv.between[0].saturating_sub(self.band * rows).min(rows);
        let line = width * lanes;
        let mut lines = [std::ptr::null(); MAX_LINES];
        let count = old.len() + new;
        for i in 0..grid.tiles {
            for channel in 0..self.lanes {
                let at = (i * GROUP + channel) * tile;
                let before = old.clone().map(|row| self.before[at + row * line..].as_ptr());
                let sums = (0..new).map(|row| self.sums[at + row * line..].as_ptr());
                lines.iter_mut().zip(before.chain(sums)).for_each(|(to, line)| *to = line);
                let at = (channel * wide + i * width) * lanes;
                let out = &mut columns[at..][..line];
                // SAFETY: both bands have a group's tiles, a tile its lines, and so many are set.
                unsafe {
                    match count {
                        // Known to the compiler where it matters.
                        2 => down(s, &lines[..2], out),
                        3 => down(s, &lines[..3], out),
                        _ => down(s, &lines[..count], out),
                    }
                }
            }
        }
        // Columns that are not there, where a window reads them.
        let there = conv.between[1];
        if conv.out[1] * conv.step[1] > there {
            for (i, lane) in columns.chunks_exact_mut(lanes).enumerate() {
                let first = there.saturating_sub(i % wide).div_ceil(wide);
                lane[first.min(lanes)..].fill(f32::NEG_INFINITY);
            }
        }
        match (conv.step[1], left) {
            (2, 0) => self.across(s, 2, 0),
            (2, 1) => self.across(s, 2, 1),
            (step, left) => self.across(s, step, left),
        }
    }
}

/// The maximum of lines one below another.
///
/// # Safety
/// The lines are as long as `out`, which is whole vectors.
#[inline(always)]
unsafe fn down<S: Simd>(s: S, lines: &[*const f32], out: &mut [f32]) {
    for at in (0..out.len()).step_by(S::LANES) {
        // SAFETY: the caller's contract.
        unsafe {
            let mut acc = match lines.first() {
                None => s.splat(f32::NEG_INFINITY),
                Some(line) => s.load(line.add(at)),
            };
            for line in lines.iter().skip(1) {
                acc = larger(s, acc, s.load(line.add(at)));
            }
            s.store(out.as_mut_ptr().add(at), acc);
        }
    }
}

impl Windows<'_> {
    /// The maximum of each window's columns, every `step` of which begin a window that also has
    /// the `left` columns before them.
    #[inline(always)]
    fn across<S: Simd>(&self, s: S, step: usize, left: usize) {
        let (conv, lanes, wide) = (self.conv, S::LANES, self.conv.columns());
        assert!(wide.is_multiple_of(step) && left <= step);
        assert!(self.columns.len() >= MAX_LANES + GROUP * wide * lanes);
        let columns = self.columns.as_ptr().wrapping_add(MAX_LANES);
        let mut ones = [1.0; MAX_LANES];
        ones[0] = 0.0;
        // SAFETY: a vector has at most MAX_LANES lanes.
        let first = s.lt(unsafe { s.load(ones.as_ptr()) }, s.splat(0.5));
        let windows = wide / step;
        for channel in (0..self.lanes).step_by(lanes) {
            let channels = lanes.min(self.lanes - channel);
            for window in 0..windows {
                let mut square = [s.splat(0.0); MAX_LANES];
                for (i, v) in square[..channels].iter_mut().enumerate() {
                    let line = (channel + i) * wide;
                    let start = window * step;
                    // SAFETY: there are MAX_LANES floats before those of each channel of the
                    // group, and `left` is at most all columns of a lane.
                    unsafe {
                        let at = |column: usize| columns.add((line + column) * lanes);
                        let mut acc = s.load(at(start));
                        for column in 1..step {
                            acc = larger(s, acc, s.load(at(start + column)));
                        }
                        for back in 1..=left {
                            let other = match start.checked_sub(back) {
                                Some(column) => s.load(at(column)),
                                None => {
                                    let other = s.load(at(start + wide - back).sub(1));
                                    s.select(first, s.splat(f32::NEG_INFINITY), other)
                                }
                            };
                            acc = larger(s, acc, other);
                        }
                        *v = acc;
                    }
                }
                s.transpose(&mut square);
                let pixels = conv.out[1].saturating_sub(window).div_ceil(windows).min(lanes);
                for (l, &v) in square[..pixels].iter().enumerate() {
                    let at = (l * windows + window) * conv.params.c_out + channel;
                    // SAFETY: the row of windows is this task's, and has these pixels' channels.
                    unsafe {
                        let y = self.y.ptr().add(at);
                        if channels == lanes {
                            s.store(y, v);
                        } else {
                            s.store_partial(y, channels, v);
                        }
                    }
                }
            }
        }
    }
}
