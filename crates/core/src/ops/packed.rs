//! Weights packed for the arithmetic that an operator asks for.

use sparoa_kernels::{
    Arithmetic, Epilogue, Pool,
    conv::{Conv2d, Conv2dBf16, Conv2dOptions, Conv2dParams},
    gemm::{PackedB, PackedBf16, gemm, gemm_bf16},
};

use super::Scratch;

/// A convolution with its weights packed.
#[derive(Clone)]
pub(super) enum PackedConv {
    F32(Conv2d),
    Bf16(Conv2dBf16),
}

impl PackedConv {
    /// `arithmetic` says whether a kernel may use algorithms that round more than the plain sum
    /// of products ([`Arithmetic::Fast`]) or not ([`Arithmetic::Exact`]); `images` (number, height,
    /// width) decide whether that pays.
    pub(super) fn new(
        arithmetic: Arithmetic,
        params: Conv2dParams,
        images: [usize; 3],
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> PackedConv {
        match arithmetic {
            Arithmetic::Bf16 => PackedConv::Bf16(Conv2dBf16::new(params, weight, bias)),
            Arithmetic::Fast | Arithmetic::Exact => {
                let exact = arithmetic == Arithmetic::Exact;
                let options = Conv2dOptions { images: Some(images), exact };
                PackedConv::F32(Conv2d::for_images(params, weight, bias, options))
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            PackedConv::F32(conv) => conv.bytes(),
            PackedConv::Bf16(conv) => conv.bytes(),
        }
    }

    pub(super) fn scratch_len(&self, n: usize, [h, w]: [usize; 2], threads: usize) -> usize {
        match self {
            PackedConv::F32(conv) => conv.scratch_len(n, h, w, threads),
            PackedConv::Bf16(conv) => conv.scratch_len(n, h, w, threads),
        }
    }

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
            PackedConv::Bf16(conv) => conv.run(n, h, w, x, epilogue, y, scratch, pool),
        }
    }
}

/// The right-hand side of a product, packed.
#[derive(Clone)]
pub(super) enum PackedMatrix {
    F32(PackedB),
    Bf16(PackedBf16),
}

impl PackedMatrix {
    /// Packs `b` times `alpha`: k x n, or n x k if transposed.
    pub(super) fn new(
        arithmetic: Arithmetic,
        [k, n]: [usize; 2],
        b: &[f32],
        transposed: bool,
        alpha: f32,
    ) -> PackedMatrix {
        let scaled: Vec<f32>;
        let b = if alpha == 1.0 {
            b
        } else {
            scaled = b.iter().map(|v| v * alpha).collect();
            &scaled
        };
        match arithmetic {
            Arithmetic::Bf16 => PackedMatrix::Bf16(PackedBf16::new(k, n, b, transposed)),
            Arithmetic::Fast | Arithmetic::Exact => {
                PackedMatrix::F32(PackedB::new(k, n, b, transposed))
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            PackedMatrix::F32(b) => b.bytes(),
            PackedMatrix::Bf16(b) => b.bytes(),
        }
    }

    fn scratch_len(&self, m: usize, threads: usize) -> usize {
        match self {
            PackedMatrix::F32(_) => 0,
            PackedMatrix::Bf16(b) => b.scratch_len(m, threads),
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
        match self {
            PackedMatrix::F32(b) => gemm(m, a, k, b, bias, epilogue, y, pool),
            PackedMatrix::Bf16(b) => gemm_bf16(m, a, k, b, bias, epilogue, y, own, pool),
        }
    }
}
