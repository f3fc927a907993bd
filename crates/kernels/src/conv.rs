//! Two-dimensional convolution and its transpose, channels last.

use crate::activation::Epilogue;
use crate::gemm::finish;
use crate::isa::{self, Isa};
use crate::pool::Pool;

/// The shape of a two-dimensional convolution, height before width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dParams {
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// Groups: both channel counts are multiples of it.
    pub groups: usize,
    /// Kernel size.
    pub kernel: [usize; 2],
    /// Step of the window.
    pub stride: [usize; 2],
    /// Distance between taps.
    pub dilation: [usize; 2],
    /// Zeros around the input: top, left, bottom, right.
    pub pads: [usize; 4],
}

impl Conv2dParams {
    fn check(&self) {
        assert!(
            self.groups > 0 && self.c_in % self.groups == 0 && self.c_out % self.groups == 0,
            "channels are multiples of groups"
        );
        assert!(
            self.kernel.iter().chain(&self.stride).chain(&self.dilation).all(|&d| d > 0),
            "kernel, stride and dilation are positive"
        );
    }
}

/// A convolution with its weights packed.
#[derive(Clone, Debug)]
pub struct Conv2d {
    params: Conv2dParams,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Conv2d {
    /// Packs `weight` (ONNX order: c_out, c_in / groups, kernel height, kernel width).
    pub fn new(params: Conv2dParams, weight: &[f32], bias: Option<&[f32]>) -> Conv2d {
        Conv2d::new_with_isa(isa::best(), params, weight, bias)
    }

    /// [`Conv2d::new`] for a given instruction set, which must be available.
    pub fn new_with_isa(
        isa: Isa,
        params: Conv2dParams,
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> Conv2d {
        assert!(isa.is_available(), "the instruction set is available");
        params.check();
        assert!(
            weight.len()
                == params.c_out
                    * (params.c_in / params.groups)
                    * params.kernel[0]
                    * params.kernel[1],
            "weight has c_out * c_in / groups * kernel elements"
        );
        assert!(bias.is_none_or(|b| b.len() == params.c_out), "bias has c_out elements");
        Conv2d { params, weight: weight.to_vec(), bias: bias.map(<[f32]>::to_vec) }
    }

    /// The shape.
    pub fn params(&self) -> &Conv2dParams {
        &self.params
    }

    /// Size of the packed weights in memory.
    pub fn bytes(&self) -> usize {
        self.weight.len() * 4
    }

    /// Output height and width for an input of h x w.
    pub fn output_size(&self, h: usize, w: usize) -> [usize; 2] {
        let p = &self.params;
        let one = |i: usize, size: usize, pad: usize| {
            let span = p.dilation[i] * (p.kernel[i] - 1) + 1;
            if size + pad < span { 0 } else { (size + pad - span) / p.stride[i] + 1 }
        };
        [one(0, h, p.pads[0] + p.pads[2]), one(1, w, p.pads[1] + p.pads[3])]
    }

    /// How many elements of scratch [`Conv2d::run`] needs on a pool of `threads`.
    pub fn scratch_len(&self, n: usize, h: usize, w: usize, threads: usize) -> usize {
        let _ = (n, h, w, threads);
        0
    }

    /// y = epilogue(conv(x) + bias), x: n, h, w, c_in; y: n, out h, out w, c_out.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &self,
        n: usize,
        h: usize,
        w: usize,
        x: &[f32],
        epi: &Epilogue<'_>,
        y: &mut [f32],
        scratch: &mut [f32],
        pool: &Pool,
    ) {
        let _ = (scratch, pool);
        let p = &self.params;
        let [oh, ow] = self.output_size(h, w);
        assert!(x.len() == n * h * w * p.c_in, "x has n * h * w * c_in elements");
        assert!(y.len() == n * oh * ow * p.c_out, "y has n * oh * ow * c_out elements");
        epi.check(y.len());
        let (ci, co) = (p.c_in / p.groups, p.c_out / p.groups);
        for at in 0..y.len() {
            let (o, rest) = (at % p.c_out, at / p.c_out);
            let (ox, rest) = (rest % ow, rest / ow);
            let (oy, b) = (rest % oh, rest / oh);
            let mut acc = 0.0;
            for ky in 0..p.kernel[0] {
                let iy = oy * p.stride[0] + ky * p.dilation[0];
                if iy < p.pads[0] || iy - p.pads[0] >= h {
                    continue;
                }
                for kx in 0..p.kernel[1] {
                    let ix = ox * p.stride[1] + kx * p.dilation[1];
                    if ix < p.pads[1] || ix - p.pads[1] >= w {
                        continue;
                    }
                    let base =
                        ((b * h + iy - p.pads[0]) * w + ix - p.pads[1]) * p.c_in + o / co * ci;
                    for i in 0..ci {
                        acc += x[base + i]
                            * self.weight[((o * ci + i) * p.kernel[0] + ky) * p.kernel[1] + kx];
                    }
                }
            }
            y[at] = finish(acc, self.bias.as_ref().map(|b| b[o]), epi, at);
        }
    }
}

/// A transposed convolution with its weights packed; `pads` crop the output.
#[derive(Clone, Debug)]
pub struct ConvTranspose2d {
    params: Conv2dParams,
    output_padding: [usize; 2],
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl ConvTranspose2d {
    /// Packs `weight` (ONNX order: c_in, c_out / groups, kernel height, kernel width).
    pub fn new(
        params: Conv2dParams,
        output_padding: [usize; 2],
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> ConvTranspose2d {
        ConvTranspose2d::new_with_isa(isa::best(), params, output_padding, weight, bias)
    }

    /// [`ConvTranspose2d::new`] for a given instruction set, which must be available.
    pub fn new_with_isa(
        isa: Isa,
        params: Conv2dParams,
        output_padding: [usize; 2],
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> ConvTranspose2d {
        assert!(isa.is_available(), "the instruction set is available");
        params.check();
        assert!(
            weight.len()
                == params.c_in
                    * (params.c_out / params.groups)
                    * params.kernel[0]
                    * params.kernel[1],
            "weight has c_in * c_out / groups * kernel elements"
        );
        assert!(bias.is_none_or(|b| b.len() == params.c_out), "bias has c_out elements");
        ConvTranspose2d {
            params,
            output_padding,
            weight: weight.to_vec(),
            bias: bias.map(<[f32]>::to_vec),
        }
    }

    /// The shape.
    pub fn params(&self) -> &Conv2dParams {
        &self.params
    }

    /// Size of the packed weights in memory.
    pub fn bytes(&self) -> usize {
        self.weight.len() * 4
    }

    /// Output height and width for an input of h x w.
    pub fn output_size(&self, h: usize, w: usize) -> [usize; 2] {
        let p = &self.params;
        let one = |i: usize, size: usize, pad: usize| {
            (size.max(1) - 1) * p.stride[i]
                + p.dilation[i] * (p.kernel[i] - 1)
                + 1
                + self.output_padding[i]
                - pad
        };
        [one(0, h, p.pads[0] + p.pads[2]), one(1, w, p.pads[1] + p.pads[3])]
    }

    /// How many elements of scratch [`ConvTranspose2d::run`] needs on a pool of `threads`.
    pub fn scratch_len(&self, n: usize, h: usize, w: usize, threads: usize) -> usize {
        let _ = (n, h, w, threads);
        0
    }

    /// y = epilogue(conv_transpose(x) + bias), x: n, h, w, c_in; y: n, out h, out w, c_out.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &self,
        n: usize,
        h: usize,
        w: usize,
        x: &[f32],
        epi: &Epilogue<'_>,
        y: &mut [f32],
        scratch: &mut [f32],
        pool: &Pool,
    ) {
        let _ = (scratch, pool);
        let p = &self.params;
        let [oh, ow] = self.output_size(h, w);
        assert!(x.len() == n * h * w * p.c_in, "x has n * h * w * c_in elements");
        assert!(y.len() == n * oh * ow * p.c_out, "y has n * oh * ow * c_out elements");
        epi.check(y.len());
        let (ci, co) = (p.c_in / p.groups, p.c_out / p.groups);
        for at in 0..y.len() {
            let (o, rest) = (at % p.c_out, at / p.c_out);
            let (ox, rest) = (rest % ow, rest / ow);
            let (oy, b) = (rest % oh, rest / oh);
            let mut acc = 0.0;
            for ky in 0..p.kernel[0] {
                let sy = (oy + p.pads[0]).wrapping_sub(ky * p.dilation[0]);
                if sy % p.stride[0] != 0 || sy / p.stride[0] >= h {
                    continue;
                }
                for kx in 0..p.kernel[1] {
                    let sx = (ox + p.pads[1]).wrapping_sub(kx * p.dilation[1]);
                    if sx % p.stride[1] != 0 || sx / p.stride[1] >= w {
                        continue;
                    }
                    let c0 = o / co * ci;
                    let base = ((b * h + sy / p.stride[0]) * w + sx / p.stride[1]) * p.c_in + c0;
                    for i in 0..ci {
                        acc += x[base + i]
                            * self.weight
                                [(((c0 + i) * co + o % co) * p.kernel[0] + ky) * p.kernel[1] + kx];
                    }
                }
            }
            y[at] = finish(acc, self.bias.as_ref().map(|b| b[o]), epi, at);
        }
    }
}
