//! Constants in the layouts that shaders want: rows of whole vec4s, convolution weights by tap.

use std::sync::Arc;

use half::{bf16, f16};

use super::{GpuConstant, MatrixUnits, product::Product, warp_groups};
use crate::tensor::{Storage, Tensor, TensorType};

/// `size` rounded up to whole vec4s.
pub(in crate::ops) fn padded(size: usize) -> usize {
    size.next_multiple_of(4)
}

/// A constant right side of products.
pub(in crate::ops) struct Weight {
    source: Arc<Tensor>,
    of: WeightOf,
}

/// What packed elements are stored as.
#[derive(Clone, Copy)]
enum Stored {
    F32,
    F16,
    /// By their bits: tensors know no such elements.
    Bf16,
}

impl Stored {
    fn half(half: bool) -> Stored {
        if half { Stored::F16 } else { Stored::F32 }
    }
}

/// How the elements of a right side lie in its tensor.
enum WeightOf {
    /// A matrix k x n, or `transposed` n x k.
    Matrix { transposed: bool },
    /// A convolution's weight: output channels, input channels / group, kernel.. Rows are (tap,
    /// input channel), columns output channels of a group.
    Conv { groups: usize },
}

impl Weight {
    /// A matrix k x n, or `transposed` n x k.
    pub(in crate::ops) fn matrix(source: &Arc<Tensor>, transposed: bool) -> Weight {
        Weight { source: source.clone(), of: WeightOf::Matrix { transposed } }
    }

    /// A convolution's weight: one matrix per group.
    pub(in crate::ops) fn conv(source: &Arc<Tensor>, groups: usize) -> Weight {
        Weight { source: source.clone(), of: WeightOf::Conv { groups } }
    }

    /// Line after line of k x n, both padded with zeros to whole vec4s; `half`: stored as f16.
    pub(super) fn lines(&self, product: &Product, half: bool) -> GpuConstant {
        let [_, k, n] = product.sizes;
        match self.of {
            WeightOf::Matrix { transposed } => matrix(&self.source, k, n, transposed, half),
            WeightOf::Conv { groups } => conv_weight(&self.source, groups, half),
        }
    }

    /// Column after column, as matrix units take them: rounded, k padded with zeros to whole slices.
    /// `turned`: inner elements in the order of [`warp_groups`].
    pub(super) fn columns(
        &self,
        product: &Product,
        units: MatrixUnits,
        turned: bool,
    ) -> GpuConstant {
        self.columns_of(product, Some(units), units.padded(product.sizes[1]), turned)
    }

    /// Column after column without gaps, as libraries take them, rounded as `units` have it.
    pub(super) fn plain_columns(
        &self,
        product: &Product,
        units: Option<MatrixUnits>,
    ) -> GpuConstant {
        self.columns_of(product, units, product.sizes[1], false)
    }

    /// Columns of `line` elements.
    fn columns_of(
        &self,
        product: &Product,
        units: Option<MatrixUnits>,
        line: usize,
        turned: bool,
    ) -> GpuConstant {
        let [_, k, n] = product.sizes;
        let rounding = match units {
            Some(MatrixUnits::Tf32) => 0,
            Some(MatrixUnits::Fp16) => 1,
            None => 2,
            Some(MatrixUnits::Bf16) => 3,
        };
        // A transposed matrix is a convolution's weight of one tap.
        let channels = match self.of {
            WeightOf::Matrix { transposed: true } => k,
            WeightOf::Matrix { transposed: false } => 0,
            WeightOf::Conv { .. } => self.source.shape()[1],
        };
        let args = vec![k, n * product.batch, line, rounding, channels, usize::from(turned)];
        GpuConstant::packed(self.source.clone(), "columns", args, |source, args| {
            let &[k, columns, line, rounding, channels, turned] = args else {
                unreachable!("made above")
            };
            let (stored, units) = match rounding {
                1 => (Stored::F16, MatrixUnits::Fp16),
                3 => (Stored::Bf16, MatrixUnits::Bf16),
                _ => (Stored::F32, MatrixUnits::Tf32),
            };
            let from = |column: usize, i: usize| match channels {
                0 => i * columns + column,
                _ => {
                    let (tap, channel) = (i / channels, i % channels);
                    (column * channels + channel) * (k / channels) + tap
                }
            };
            let mut packed = fill(source, columns, line, stored, |column, i| {
                let i = if turned == 1 { warp_groups::inner(i, units) } else { i };
                (i < k).then(|| from(column, i))
            });
            if rounding == 0 {
                for value in packed.as_slice_mut::<f32>().into_iter().flatten() {
                    *value = round_tf32(*value);
                }
            }
            packed
        })
    }
}

/// The nearest number of 11 significant bits; in the middle the one farther from zero, as the
/// device's conversion has it.
fn round_tf32(value: f32) -> f32 {
    if value.is_finite() { f32::from_bits((value.to_bits() + 0x1000) & !0x1fff) } else { value }
}

/// A constant matrix as k x n, both padded with zeros to whole vec4s. `transposed`: it is stored
/// n x k. `half`: stored as f16.
fn matrix(source: &Arc<Tensor>, k: usize, n: usize, transposed: bool, half: bool) -> GpuConstant {
    if !transposed && !half && k.is_multiple_of(4) && n.is_multiple_of(4) {
        return GpuConstant::plain(source.clone());
    }
    let args = vec![k, n, usize::from(transposed), usize::from(half)];
    GpuConstant::packed(source.clone(), "matrix", args, |source, args| {
        let &[k, n, transposed, half] = args else { unreachable!("made above") };
        let (row, column) = if transposed == 1 { (1, k) } else { (n, 1) };
        fill(source, padded(k), padded(n), Stored::half(half == 1), |i, j| {
            (i < k && j < n).then_some(i * row + j * column)
        })
    })
}

/// A convolution's weight (output channels, input channels / group, kernel..) as one matrix per
/// group: rows are (tap, input channel), columns output channels, both padded with zeros.
fn conv_weight(source: &Arc<Tensor>, groups: usize, half: bool) -> GpuConstant {
    let shape = source.shape();
    let taps: usize = shape[2..].iter().product();
    let args = vec![groups, shape[0] / groups, shape[1], taps, usize::from(half)];
    GpuConstant::packed(source.clone(), "conv", args, |source, args| {
        let &[groups, c_out, c_in, taps, half] = args else { unreachable!("made above") };
        let rows = padded(c_in * taps);
        fill(source, groups * rows, padded(c_out), Stored::half(half == 1), |i, j| {
            let (group, k) = (i / rows, i % rows);
            let (tap, c) = (k / c_in, k % c_in);
            (tap < taps && j < c_out).then(|| ((group * c_out + j) * c_in + c) * taps + tap)
        })
    })
}

/// A depthwise convolution's weight (channels, 1, kernel..) as (tap, channel).
pub(in crate::ops) fn depthwise_weight(source: &Arc<Tensor>) -> GpuConstant {
    let channels = source.shape()[0];
    let taps: usize = source.shape()[2..].iter().product();
    GpuConstant::packed(source.clone(), "depthwise", vec![channels, taps], |source, args| {
        let &[channels, taps] = args else { unreachable!("made above") };
        fill(source, taps, channels, Stored::F32, |tap, c| Some(c * taps + tap))
    })
}

/// A bias of `groups` parts, each padded with zeros to whole vec4s.
pub(in crate::ops) fn bias(source: &Arc<Tensor>, groups: usize) -> GpuConstant {
    let part = source.ty().len() / groups.max(1);
    if part.is_multiple_of(4) {
        return GpuConstant::plain(source.clone());
    }
    GpuConstant::packed(source.clone(), "bias", vec![groups, part], |source, args| {
        let &[groups, part] = args else { unreachable!("made above") };
        fill(source, groups, padded(part), Stored::F32, |i, j| (j < part).then_some(i * part + j))
    })
}

/// A bias rounded to f16, or to bf16, its length as it is.
pub(super) fn half_bias(source: &Arc<Tensor>, bfloat: bool) -> GpuConstant {
    let args = vec![source.ty().len(), usize::from(bfloat)];
    GpuConstant::packed(source.clone(), "half bias", args, |source, args| {
        let stored = if args[1] == 1 { Stored::Bf16 } else { Stored::F16 };
        fill(source, 1, args[0], stored, |_, i| Some(i))
    })
}

/// A rows x columns matrix whose elements are those of `source` at the indices of `from`, or
/// zero.
fn fill(
    source: &Tensor,
    rows: usize,
    columns: usize,
    stored: Stored,
    from: impl Fn(usize, usize) -> Option<usize>,
) -> Tensor {
    let data = source.as_slice::<f32>().expect("kernels with packed weights are f32");
    let values = (0..rows)
        .flat_map(|i| (0..columns).map(move |j| (i, j)))
        .map(|(i, j)| from(i, j).map_or(0.0, |at| data[at]));
    match stored {
        Stored::F16 => {
            let values: Vec<f16> = values.map(f16::from_f32).collect();
            Tensor::from_slice([rows, columns], &values)
        }
        Stored::Bf16 => {
            let values: Vec<u16> = values.map(|v| bf16::from_f32(v).to_bits()).collect();
            Tensor::from_slice([rows, columns], &values)
        }
        Stored::F32 => {
            let mut packed = Tensor::zeros(TensorType::f32([rows, columns]));
            let target = packed.as_slice_mut::<f32>().expect("made as f32");
            for (target, value) in target.iter_mut().zip(values) {
                *target = value;
            }
            packed
        }
    }
}

/// Integer constants (indices) as i32, negative ones counted from `size`.
pub(in crate::ops) fn indices(source: &Arc<Tensor>, size: usize) -> GpuConstant {
    GpuConstant::packed(source.clone(), "indices", vec![size], |source, args| {
        let size = i64::try_from(args[0]).unwrap_or(i64::MAX);
        let values = source.to_i64s().unwrap_or_default();
        let wrap = |v: i64| if v < 0 { v + size } else { v };
        let values: Vec<i32> =
            values.into_iter().map(|v| i32::try_from(wrap(v)).unwrap_or(0)).collect();
        let bytes = Storage::copy_from(bytemuck::cast_slice(&values));
        let ty = TensorType::new(crate::tensor::DType::I32, [values.len()]);
        Tensor::new(ty, bytes).expect("one i32 per index")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(shape: &[usize]) -> Arc<Tensor> {
        let len: usize = shape.iter().product();
        let data: Vec<f32> = (1..=len).map(|v| v as f32).collect();
        Arc::new(Tensor::from_slice(shape.to_vec(), &data))
    }

    #[test]
    fn matrices_are_padded_and_transposed() {
        let w = counting(&[2, 3]);
        let packed = matrix(&w, 3, 2, true, false).tensor();
        assert_eq!(packed.shape(), [4, 4]);
        let rows = packed.as_slice::<f32>().unwrap();
        assert_eq!(&rows[..8], [1.0, 4.0, 0.0, 0.0, 2.0, 5.0, 0.0, 0.0]);
        assert_eq!(matrix(&counting(&[4, 4]), 4, 4, false, false).form, "plain");
        let half = matrix(&w, 2, 3, false, true).tensor();
        assert_eq!(half.as_slice::<f16>().unwrap()[1], f16::from_f32(2.0));
    }

    #[test]
    fn convolution_weights_go_by_group_tap_and_channel() {
        // Two groups, 1 output and 2 input channels each, 1x2 kernel.
        let packed = conv_weight(&counting(&[2, 2, 1, 2]), 2, false).tensor();
        assert_eq!(packed.shape(), [8, 4]);
        let column: Vec<f32> = packed.as_slice().unwrap().iter().step_by(4).copied().collect();
        assert_eq!(column, [1.0, 3.0, 2.0, 4.0, 5.0, 7.0, 6.0, 8.0]);
    }

    #[test]
    fn matrix_units_get_columns_of_whole_slices() {
        let product = Product { sizes: [9, 4, 1], batch: 2 };
        let weight = Weight::conv(&counting(&[2, 2, 1, 2]), 2);
        let packed = weight.columns(&product, MatrixUnits::Tf32, false).tensor();
        assert_eq!(packed.shape(), [2, 32]);
        let values = packed.as_slice::<f32>().unwrap();
        assert_eq!((&values[..5], values[32]), (&[1.0, 3.0, 2.0, 4.0, 0.0][..], 5.0));
        let product = Product { sizes: [9, 3, 2], batch: 1 };
        for (transposed, expected) in [(true, [1.0, 2.0, 3.0]), (false, [1.0, 3.0, 5.0])] {
            let weight = Weight::matrix(&counting(&[6]), transposed);
            let packed = weight.columns(&product, MatrixUnits::Fp16, false).tensor();
            assert_eq!(packed.shape(), [2, 64]);
            assert_eq!(packed.as_slice::<f16>().unwrap()[..3], expected.map(f16::from_f32));
            let packed = weight.columns(&product, MatrixUnits::Bf16, false).tensor();
            assert_eq!(packed.shape(), [2, 64]);
            let bits = expected.map(|v| bf16::from_f32(v).to_bits());
            assert_eq!(packed.as_slice::<u16>().unwrap()[..3], bits);
        }
    }

    #[test]
    fn tf32_has_11_significant_bits() {
        let step = 2f32.powi(-10);
        assert_eq!(round_tf32(1.0 + 0.49 * step), 1.0);
        assert_eq!(round_tf32(-1.0 - 0.5 * step), -1.0 - step);
        assert!(round_tf32(f32::NAN).is_nan() && round_tf32(f32::MAX).is_infinite());
    }

    #[test]
    fn negative_indices_wrap() {
        let source = Arc::new(Tensor::from_slice([3], &[-1i64, 0, 2]));
        assert_eq!(indices(&source, 5).tensor().as_slice::<i32>().unwrap(), [4, 0, 2]);
    }
}
