//! Two-dimensional convolution of bytes, channels last.

use super::depthwise::{self, Depthwise};
use super::gemm::{Split, run_dense};
use super::pack::Product;
use super::tile::{Block, Rows};
use super::{Activations, Requantize, Shared, align};
use crate::conv::{Conv2dParams, check_images, indirect::Geometry};
use crate::int8::Bytes;
use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::simd;

#[derive(Clone, Debug)]
enum Algorithm {
    /// One tap, step 1, no padding: the input is the matrix.
    Pointwise(Product),
    /// Pointers to each tap's pixel; a product per group.
    Indirect(Vec<Product>),
    /// Few input channels: a segment is a whole row of the kernel.
    KernelRows(Product),
    /// One input channel per group.
    Depthwise(Depthwise),
}

/// A convolution of bytes that ends in bytes, its weights packed.
#[derive(Clone, Debug)]
pub struct QuantizedConv2d {
    params: Conv2dParams,
    algorithm: Algorithm,
    /// What lies in the padding: a pixel, or a row of the kernel.
    zeros: Vec<u8>,
}

/// Rows of the largest block, in tiles: its table of pointers stays in the first-level cache.
const BLOCK_TILES: usize = 8;

impl QuantizedConv2d {
    /// Packs `weight` (ONNX order: c_out, c_in / groups, kernel height, kernel width); its zero
    /// points are one, or one per output channel.
    pub fn new(
        params: Conv2dParams,
        x: Activations,
        weight: Bytes<'_>,
        weight_zero: &[i32],
        bias: Option<&[i32]>,
        requantize: &Requantize,
    ) -> QuantizedConv2d {
        let isa = isa::best();
        QuantizedConv2d::new_with_isa(isa, params, x, weight, weight_zero, bias, requantize)
    }

    /// [`QuantizedConv2d::new`] for a given instruction set, which must be available.
    pub fn new_with_isa(
        isa: Isa,
        params: Conv2dParams,
        x: Activations,
        weight: Bytes<'_>,
        weight_zero: &[i32],
        bias: Option<&[i32]>,
        requantize: &Requantize,
    ) -> QuantizedConv2d {
        assert!(isa.is_available(), "the instruction set is available");
        params.check(weight.len(), bias.map(<[i32]>::len));
        let p = &params;
        assert!(
            weight_zero.len() == 1 || weight_zero.len() == p.c_out,
            "one zero point, or one per output channel"
        );
        requantize.check(p.c_out);
        let (ci, co, taps) = (p.c_in / p.groups, p.c_out / p.groups, p.taps());
        let value = |o: usize, c: usize, tap: usize| {
            let zero = weight_zero[if weight_zero.len() == 1 { 0 } else { o }];
            weight.get((o * ci + c) * taps + tap) - zero
        };
        let part = |group: usize| {
            let channels = group * co..(group + 1) * co;
            let mut part = requantize.clone();
            if part.multipliers.len() > 1 {
                part.multipliers = part.multipliers[channels.clone()].to_vec();
            }
            (bias.map(|b| &b[channels]), part)
        };
        let by_tap = |group: usize| {
            let (bias, requantize) = part(group);
            Product::new(isa, [taps, ci, co], x, bias, &requantize, |tap, c, j| {
                value(group * co + j, c, tap)
            })
        };
        let plain = p.stride == [1, 1] && p.pads == [0; 4];
        let algorithm = if taps == 1 && plain && p.groups == 1 {
            Algorithm::Pointwise(by_tap(0))
        } else if ci == 1 && co == 1 && p.groups > 1 && taps <= depthwise::MAX_TAPS {
            Algorithm::Depthwise(Depthwise::new(isa, p, x, bias, requantize, |c, tap| {
                value(c, 0, tap)
            }))
        } else if ci < 16 && taps > 1 && p.groups == 1 && p.dilation[1] == 1 {
            let sizes = [p.kernel[0], p.kernel[1] * ci, co];
            Algorithm::KernelRows(Product::new(isa, sizes, x, bias, requantize, |ky, i, j| {
                value(j, i % ci, ky * p.kernel[1] + i / ci)
            }))
        } else {
            Algorithm::Indirect((0..p.groups).map(by_tap).collect())
        };
        let zeros = match &algorithm {
            Algorithm::Depthwise(d) => d.zeros_len(),
            _ => p.kernel[1] * ci,
        };
        QuantizedConv2d { params, algorithm, zeros: vec![x.zero_byte(); zeros] }
    }

    /// The shape.
    pub fn params(&self) -> &Conv2dParams {
        &self.params
    }

    /// The name of the method chosen for this shape.
    pub fn algorithm(&self) -> &'static str {
        match &self.algorithm {
            Algorithm::Pointwise(_) => "pointwise",
            Algorithm::Indirect(_) => "indirect",
            Algorithm::KernelRows(_) => "kernel rows",
            Algorithm::Depthwise(_) => "depthwise",
        }
    }

    /// Size of the packed weights in memory.
    pub fn bytes(&self) -> usize {
        match &self.algorithm {
            Algorithm::Pointwise(p) | Algorithm::KernelRows(p) => p.bytes(),
            Algorithm::Indirect(groups) => groups.iter().map(Product::bytes).sum(),
            Algorithm::Depthwise(d) => d.bytes(),
        }
    }

    /// Output height and width for an input of h x w.
    pub fn output_size(&self, h: usize, w: usize) -> [usize; 2] {
        self.params.output_size(h, w)
    }

    /// How many bytes of scratch [`QuantizedConv2d::run`] needs on a pool of `threads`.
    pub fn scratch_len(&self, n: usize, h: usize, w: usize, threads: usize) -> usize {
        let [oh, ow] = self.output_size(h, w);
        64 + threads * self.worker_scratch(n * oh * ow, threads)
    }

    fn split(&self, m: usize, p: &Product, threads: usize) -> Split {
        // Groups are tasks already.
        let threads = if self.params.groups >= 4 * threads { 1 } else { threads };
        Split::new(m, p, threads, BLOCK_TILES * p.tile.0)
    }

    /// Bytes of the pointers, and of copies at the border, of one block.
    fn table_len(&self, m: usize, p: &Product, threads: usize) -> usize {
        let rows = self.split(m, p, threads).block_rows();
        let pointers = (rows * p.segments * size_of::<*const u8>()).next_multiple_of(64);
        let copies = match self.algorithm {
            Algorithm::KernelRows(_) => rows * p.segments * p.segment,
            _ => 0,
        };
        pointers + copies.next_multiple_of(64)
    }

    fn worker_scratch(&self, m: usize, threads: usize) -> usize {
        let wide = |p: &Product| (4 * p.wide_len()).next_multiple_of(64);
        match &self.algorithm {
            Algorithm::Depthwise(_) => 0,
            Algorithm::Pointwise(p) => wide(p),
            Algorithm::KernelRows(p) => wide(p) + self.table_len(m, p, threads),
            // Groups may be packed differently.
            Algorithm::Indirect(groups) => {
                let most = groups.iter().map(wide).max().unwrap_or(0);
                most + self.table_len(m, &groups[0], threads)
            }
        }
    }

    /// y = requantised convolution of x; x: n, h, w, c_in; y: n, out h, out w, c_out; bytes of the
    /// types given to `new`.
    pub fn run(
        &self,
        [n, h, w]: [usize; 3],
        x: &[u8],
        y: &mut [u8],
        scratch: &mut [u8],
        pool: &Pool,
    ) {
        let p = &self.params;
        let [oh, ow] = self.output_size(h, w);
        let m = n * oh * ow;
        check_images(n, [h, w, p.c_in], [oh, ow, p.c_out], x.len(), y.len());
        if y.is_empty() {
            return;
        }
        let per_worker = self.worker_scratch(m, pool.threads());
        let geometry = Geometry { params: *p, h, w, oh, ow };
        match &self.algorithm {
            Algorithm::Pointwise(product) => {
                run_dense(product, m, x, y, scratch, per_worker, pool);
            }
            Algorithm::Depthwise(d) => d.run(n, &geometry, x, &self.zeros, y, pool),
            Algorithm::KernelRows(product) => {
                let groups = std::slice::from_ref(product);
                self.run_blocks(m, &geometry, x, groups, y, scratch, per_worker, pool);
            }
            Algorithm::Indirect(groups) => {
                self.run_blocks(m, &geometry, x, groups, y, scratch, per_worker, pool);
            }
        }
    }

    /// Blocks of output pixels as tasks.
    fn run_blocks(
        &self,
        m: usize,
        geometry: &Geometry,
        x: &[u8],
        groups: &[Product],
        y: &mut [u8],
        scratch: &mut [u8],
        per_worker: usize,
        pool: &Pool,
    ) {
        let p = &self.params;
        let (ci, co) = (p.c_in / p.groups, p.c_out / p.groups);
        let split = self.split(m, &groups[0], pool.threads());
        let scratch = align(scratch);
        assert!(scratch.len() >= pool.threads() * per_worker, "scratch has scratch_len bytes");
        let (y, scratch) = (Shared(y.as_mut_ptr()), Shared(scratch.as_mut_ptr()));
        let (y, scratch) = (&y, &scratch);
        pool.run_with_worker(groups.len() * split.tasks(), &|task, worker| {
            let (group, task) = (task / split.tasks(), task % split.tasks());
            let (rows, panels) = split.part(task);
            if rows.is_empty() || panels.is_empty() {
                return;
            }
            let product = &groups[group];
            // SAFETY: each worker has its own part, and runs one task at a time.
            let own = unsafe { scratch.slice(worker * per_worker, per_worker) };
            let wide_len = 4 * product.wide_len();
            let (wide, table) = own.split_at_mut(wide_len.next_multiple_of(64));
            let (first, m, mr) = (rows.start, rows.len(), product.tile.0);
            let table = match self.algorithm {
                Algorithm::KernelRows(_) => geometry.kernel_rows(x, &self.zeros, rows, mr, table),
                _ => geometry.pointers(x, group * ci, &self.zeros, rows, mr, table),
            };
            let block = Block {
                product,
                rows: Rows::Table(table),
                m,
                panels,
                c: y.at(first * p.c_out + group * co),
                ldc: p.c_out,
                wide: bytemuck::cast_slice_mut(&mut wide[..wide_len]),
            };
            simd::dispatch_bytes(product.isa, block);
        });
    }
}
