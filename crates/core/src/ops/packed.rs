//! Weights packed for the arithmetic that an operator asks for, dense or, where that is faster,
//! sparse.

use sparoa_kernels::{
    Activation, Arithmetic, Epilogue, Pool,
    conv::{Conv2d, Conv2dBf16, Conv2dOptions, Conv2dParams},
    gemm::{PackedB, PackedBf16, PackedTiles, gemm, gemm_bf16, gemm_tiled},
    isa,
    sparse::{SparseConv2d, SparseMatrix},
};

use super::{
    OpError, Scratch,
    variant::{self, SKIPPING, SPARSE, Variant},
};

/// A convolution with its weights packed.
#[derive(Clone)]
pub(super) enum PackedConv {
    F32(Conv2d),
    /// For images of one size.
    Sparse(SparseConv2d),
    Bf16(Conv2dBf16),
}

impl PackedConv {
    /// The fastest kernel for constant weights. `arithmetic` says whether a kernel may use
    /// algorithms that round more than the plain sum of products ([`Arithmetic::Fast`]) or not;
    /// `images` (number, height, width) decide whether that pays.
    ///
    /// # Errors
    /// When the sparse kernel is asked for and there is none for this layer.
    pub(super) fn new(
        (arithmetic, variant): (Arithmetic, Variant),
        params: Conv2dParams,
        images: [usize; 3],
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> Result<PackedConv, OpError> {
        let [count, h, w] = images;
        let sparse = |n: usize| match depthwise(&params) {
            false => SparseConv2d::new(params, [n, h, w], weight, bias).map(PackedConv::Sparse),
            true => None,
        };
        let dense = |n: usize| PackedConv::dense(arithmetic, params, [n, h, w], weight, bias);
        match variant.under(arithmetic) {
            Variant::Dense => Ok(dense(count)),
            Variant::Sparse => sparse(count).ok_or_else(no_sparse_kernel),
            Variant::Fastest => {
                let [oh, ow] = params.output_size(h, w);
                let pixels = count.checked_mul(oh).and_then(|m| m.checked_mul(ow));
                let macs = pixels.and_then(|m| m.checked_mul(weight.len()));
                let Some(step) = variant::sparsity(weight).filter(|_| variant::matters(macs))
                else {
                    return Ok(dense(count));
                };
                let n = variant::images(count);
                let question = format!(
                    "{} {arithmetic:?} {params:?} {n}x{h}x{w} sparsity {step}",
                    isa::best()
                );
                let (mut x, mut y, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
                let (pool, epilogue) = (Pool::single(), Epilogue::activation(Activation::Relu));
                Ok(variant::faster(question, [count, n], dense, sparse, |conv| {
                    if x.is_empty() {
                        x = variant::inputs(n * h * w * params.c_in);
                        y = vec![0.0; n * oh * ow * params.c_out];
                    }
                    scratch.resize(conv.scratch_len(n, [h, w], 1).max(scratch.len()), 0.0);
                    conv.run(n, [h, w], &x, &epilogue, &mut y, &mut scratch, &pool);
                }))
            }
        }
    }

    /// The name of the method.
    pub(super) fn method(&self) -> &'static str {
        match self {
            PackedConv::F32(conv) => conv.algorithm(),
            PackedConv::Sparse(_) => SPARSE,
            PackedConv::Bf16(conv) => conv.algorithm(),
        }
    }

    /// [`PackedConv::new`] without looking at zeros, for weights made at run time.
    pub(super) fn dense(
        arithmetic: Arithmetic,
        params: Conv2dParams,
        images: [usize; 3],
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> PackedConv {
        match arithmetic {
            Arithmetic::Bf16 => {
                PackedConv::Bf16(Conv2dBf16::for_images(params, images, weight, bias))
            }
            Arithmetic::Fast | Arithmetic::Bf16x2 | Arithmetic::Exact | Arithmetic::Reference => {
                let exact = matches!(arithmetic, Arithmetic::Exact | Arithmetic::Reference);
                let tiles = arithmetic.terms();
                let options = Conv2dOptions { images: Some(images), exact, tiles };
                PackedConv::F32(Conv2d::for_images(params, weight, bias, options))
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            PackedConv::F32(conv) => conv.bytes(),
            PackedConv::Sparse(conv) => conv.bytes(),
            PackedConv::Bf16(conv) => conv.bytes(),
        }
    }

    pub(super) fn scratch_len(&self, n: usize, [h, w]: [usize; 2], threads: usize) -> usize {
        match self {
            PackedConv::F32(conv) => conv.scratch_len(n, h, w, threads),
            PackedConv::Sparse(conv) => conv.scratch_len(n, threads),
            PackedConv::Bf16(conv) => conv.scratch_len(n, h, w, threads),
        }
    }

    /// y = epilogue(conv(x) + bias) for images of the size that the weights were packed for.
    pub(super) fn run(
        &self,
        n: usize,
        [h, w]: [usize; 2],
        x: &[f32],
        epilogue: &Epilogue<'_>,
        y: &mut [f32],
        scratch: &mut [f32],
        pool: &Pool,
    ) {
        match self {
            PackedConv::F32(conv) => conv.run(n, h, w, x, epilogue, y, scratch, pool),
            PackedConv::Sparse(conv) => conv.run(n, x, epilogue, y, scratch, pool),
            PackedConv::Bf16(conv) => conv.run(n, h, w, x, epilogue, y, scratch, pool),
        }
    }
}

/// One weight per channel and tap leaves nothing to skip.
fn depthwise(params: &Conv2dParams) -> bool {
    params.groups == params.c_in && params.groups > 1
}

fn no_sparse_kernel() -> OpError {
    OpError::unsupported(
        "the sparse kernel (it is for matrices, and for convolutions that are not depthwise and \
         whose images are narrow enough for offsets of 16 bits)",
    )
}

/// The right-hand side of a product, packed.
#[derive(Clone)]
pub(super) enum PackedMatrix {
    F32(PackedB),
    Sparse(Box<SparseMatrix>),
    Bf16(PackedBf16),
    /// On AMX, numbers as sums of bf16.
    Tiles(PackedTiles),
}

impl From<SparseMatrix> for PackedMatrix {
    fn from(matrix: SparseMatrix) -> PackedMatrix {
        PackedMatrix::Sparse(Box::new(matrix))
    }
}

impl PackedMatrix {
    /// The name of the method.
    pub(super) fn method(&self) -> &'static str {
        match self {
            PackedMatrix::F32(b) if b.skips_zeros() => SKIPPING,
            PackedMatrix::F32(_) => "dense",
            PackedMatrix::Sparse(_) => SPARSE,
            PackedMatrix::Bf16(_) => "bf16",
            PackedMatrix::Tiles(_) => "amx",
        }
    }

    /// Packs `b` times `alpha`: k x n, or n x k if transposed, for products of `count` rows.
    ///
    /// # Errors
    /// When the sparse kernel is asked for and there is none for this matrix.
    pub(super) fn new(
        (arithmetic, variant): (Arithmetic, Variant),
        [count, k, n]: [usize; 3],
        b: &[f32],
        transposed: bool,
        alpha: f32,
    ) -> Result<PackedMatrix, OpError> {
        let scaled: Vec<f32>;
        let b = if alpha == 1.0 {
            b
        } else {
            scaled = b.iter().map(|v| v * alpha).collect();
            &scaled
        };
        let sparse = |m: usize| SparseMatrix::new(m, [k, n], b, transposed).map(PackedMatrix::from);
        let dense = |m: usize| match arithmetic {
            Arithmetic::Bf16 => PackedMatrix::Bf16(PackedBf16::new(k, n, b, transposed)),
            Arithmetic::Fast | Arithmetic::Bf16x2 => {
                let terms = arithmetic.terms().filter(|&terms| {
                    PackedTiles::pays(terms, [m, k, n]) && PackedTiles::fits(isa::best(), b)
                });
                match terms {
                    Some(terms) => {
                        PackedMatrix::Tiles(PackedTiles::new(terms, [m, k, n], b, transposed))
                    }
                    None => PackedMatrix::F32(PackedB::new(k, n, b, transposed).skipping_zeros()),
                }
            }
            Arithmetic::Exact | Arithmetic::Reference => {
                PackedMatrix::F32(PackedB::new(k, n, b, transposed))
            }
        };
        match variant.under(arithmetic) {
            Variant::Dense => Ok(dense(count)),
            Variant::Sparse => sparse(count).ok_or_else(no_sparse_kernel),
            Variant::Fastest => {
                let macs = count.checked_mul(b.len());
                let Some(step) = variant::sparsity(b).filter(|_| variant::matters(macs)) else {
                    return Ok(dense(count));
                };
                let m = variant::rows(count);
                let question =
                    format!("{} {arithmetic:?} matrix {m}x{k}x{n} sparsity {step}", isa::best());
                let (mut a, mut y, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
                let pool = Pool::single();
                Ok(variant::faster(question, [count, m], dense, sparse, |b| {
                    if a.is_empty() {
                        (a, y) = (variant::inputs(m * k), vec![0.0; m * n]);
                    }
                    scratch.resize(b.scratch_len(m, 1).max(scratch.len()), 0.0);
                    b.run_on([m, k], &a, None, &Epilogue::NONE, &mut y, &mut scratch, &pool);
                }))
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            PackedMatrix::F32(b) => b.bytes(),
            PackedMatrix::Sparse(b) => b.bytes(),
            PackedMatrix::Bf16(b) => b.bytes(),
            PackedMatrix::Tiles(b) => b.bytes(),
        }
    }

    fn scratch_len(&self, m: usize, threads: usize) -> usize {
        match self {
            PackedMatrix::F32(_) => 0,
            PackedMatrix::Sparse(b) => b.scratch_len(m, threads),
            PackedMatrix::Bf16(b) => b.scratch_len(m, threads),
            PackedMatrix::Tiles(b) => b.scratch_len(m, threads),
        }
    }

    /// Bytes of scratch for `m` rows.
    pub(super) fn scratch_bytes(&self, m: usize, threads: usize) -> usize {
        Scratch::bytes::<f32>(self.scratch_len(m, threads))
    }

    /// y = epilogue(a b + bias) for `m` rows of `k` elements.
    pub(super) fn run(
        &self,
        [m, k]: [usize; 2],
        a: &[f32],
        bias: Option<&[f32]>,
        epilogue: &Epilogue<'_>,
        y: &mut [f32],
        scratch: &mut Scratch<'_>,
        pool: &Pool,
    ) {
        if y.is_empty() {
            return;
        }
        let own = scratch.take::<f32>(self.scratch_len(m, pool.threads()));
        self.run_on([m, k], a, bias, epilogue, y, own, pool);
    }

    /// [`PackedMatrix::run`] with elements of scratch of its own.
    fn run_on(
        &self,
        [m, k]: [usize; 2],
        a: &[f32],
        bias: Option<&[f32]>,
        epilogue: &Epilogue<'_>,
        y: &mut [f32],
        own: &mut [f32],
        pool: &Pool,
    ) {
        match self {
            PackedMatrix::F32(b) => gemm(m, a, k, b, bias, epilogue, y, pool),
            PackedMatrix::Sparse(b) => b.run(m, a, k, bias, epilogue, y, own, pool),
            PackedMatrix::Bf16(b) => gemm_bf16(m, a, k, b, bias, epilogue, y, own, pool),
            PackedMatrix::Tiles(b) => gemm_tiled(m, a, k, b, bias, epilogue, y, own, pool),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights of which one in ten is not zero.
    fn pruned(len: usize) -> Vec<f32> {
        (0..len).map(|i| if i * 37 % 10 == 3 { (i % 17) as f32 - 8.5 } else { 0.0 }).collect()
    }

    /// Makes the choice of the one question whose text contains `part`.
    fn choose(part: &str, choice: usize) {
        let known = variant::choices();
        let (question, _) = known.iter().find(|(q, _)| q.contains(part)).unwrap();
        variant::learn(&variant::Choices::from([(question.clone(), choice)]));
    }

    #[test]
    fn both_kernels_of_a_pruned_convolution_agree_and_the_reference_stays_dense() {
        let params = Conv2dParams {
            c_in: 43,
            c_out: 21,
            groups: 1,
            kernel: [3, 3],
            stride: [1, 1],
            dilation: [1, 1],
            pads: [1; 4],
        };
        let (weight, images) = (pruned(21 * 43 * 9), [2, 13, 11]);
        let pack_as = |arithmetic, variant| {
            PackedConv::new((arithmetic, variant), params, images, &weight, None).unwrap()
        };
        let pack = |arithmetic| pack_as(arithmetic, Variant::Fastest);
        let x = variant::inputs(2 * 13 * 11 * 43);
        let pool = Pool::new(2);
        let outputs = |conv: &PackedConv| {
            let mut y = vec![f32::NAN; 2 * 13 * 11 * 21];
            let mut scratch = vec![0.0; conv.scratch_len(2, [13, 11], 2)];
            conv.run(2, [13, 11], &x, &Epilogue::NONE, &mut y, &mut scratch, &pool);
            y
        };
        pack(Arithmetic::Exact);
        choose("c_in: 43", 1);
        let sparse = pack(Arithmetic::Exact);
        assert!(matches!(sparse, PackedConv::Sparse(_)));
        let reference = pack(Arithmetic::Reference);
        assert!(matches!(reference, PackedConv::F32(_)));
        assert!(sparse.bytes() * 5 < reference.bytes());
        for (a, b) in outputs(&sparse).iter().zip(outputs(&reference)) {
            assert!((a - b).abs() <= 1e-4 * b.abs().max(8.0), "{a} {b}");
        }
        choose("c_in: 43", 0);
        assert!(matches!(pack(Arithmetic::Exact), PackedConv::F32(_)));
        assert_eq!(pack_as(Arithmetic::Fast, Variant::Sparse).method(), SPARSE);
        choose("c_in: 43", 1);
        assert_ne!(pack_as(Arithmetic::Fast, Variant::Dense).method(), SPARSE);
        let depthwise = Conv2dParams { c_in: 21, groups: 21, ..params };
        let how = (Arithmetic::Fast, Variant::Sparse);
        let refused = PackedConv::new(how, depthwise, images, &weight[..21 * 9], None);
        assert!(matches!(refused, Err(OpError::Unsupported(_))));
        // Weights made at run time are not looked at.
        let dense = PackedConv::dense(Arithmetic::Fast, params, images, &weight, None);
        assert!(matches!(dense, PackedConv::F32(_)));
    }

    /// A plan that divides a batch makes the same layer for many numbers of images.
    #[test]
    fn many_images_ask_one_question() {
        let params = Conv2dParams {
            c_in: 47,
            c_out: 20,
            groups: 1,
            kernel: [3, 3],
            stride: [1, 1],
            dilation: [1, 1],
            pads: [1; 4],
        };
        let weight = pruned(20 * 47 * 9);
        let asked = |images: &[usize]| {
            for &n in images {
                let how = (Arithmetic::Fast, Variant::Fastest);
                PackedConv::new(how, params, [n, 6, 7], &weight, None).unwrap();
            }
            variant::choices().keys().filter(|question| question.contains("c_in: 47")).count()
        };
        assert_eq!((asked(&[40, 8, 23, 64]), asked(&[3]), asked(&[3, 8, 12])), (1, 2, 2));
    }

    #[test]
    fn both_forms_of_a_pruned_matrix_agree() {
        let (m, k, n) = (61, 83, 47);
        let b = pruned(k * n);
        let pack = |arithmetic| {
            let how = (arithmetic, Variant::Fastest);
            PackedMatrix::new(how, [m, k, n], &b, true, 0.5).unwrap()
        };
        pack(Arithmetic::Fast);
        choose("matrix 61x83x47", 1);
        let (sparse, reference) = (pack(Arithmetic::Fast), pack(Arithmetic::Reference));
        assert!(matches!(sparse, PackedMatrix::Sparse(_)));
        assert_eq!(reference.method(), "dense");
        let row = PackedMatrix::new((Arithmetic::Fast, Variant::Dense), [1, k, n], &b, true, 0.5);
        assert_eq!(row.unwrap().method(), SKIPPING);
        let a = variant::inputs(m * k);
        let pool = Pool::new(2);
        let outputs = |b: &PackedMatrix| {
            let mut y = vec![f32::NAN; m * n];
            let mut bytes = vec![0u64; b.scratch_bytes(m, 2) / 8 + 16];
            let mut scratch = Scratch::new(bytemuck::cast_slice_mut(&mut bytes));
            b.run([m, k], &a, None, &Epilogue::NONE, &mut y, &mut scratch, &pool);
            y
        };
        for (a, b) in outputs(&sparse).iter().zip(outputs(&reference)) {
            assert!((a - b).abs() <= 1e-4 * b.abs().max(8.0), "{a} {b}");
        }
    }
}
