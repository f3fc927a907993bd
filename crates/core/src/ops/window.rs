//! Sliding windows: what convolutions and pools share. Attributes, padding, output sizes, and the
//! input rows that a range of output rows needs.

use std::ops::Range;

use super::{AttributeValue, Attributes, OpError, axes};

/// Order of the dimensions of an activation tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Batch, channels, spatial dimensions, as in ONNX.
    #[default]
    Nchw,
    /// Batch, spatial dimensions, channels.
    Nhwc,
}

impl Layout {
    /// The axis of the channels in a tensor of `rank` dimensions, at least 2.
    pub fn channel_axis(self, rank: usize) -> usize {
        match self {
            Layout::Nchw => 1,
            Layout::Nhwc => rank - 1,
        }
    }

    /// The first spatial axis.
    pub fn spatial_axis(self) -> usize {
        match self {
            Layout::Nchw => 2,
            Layout::Nhwc => 1,
        }
    }

    /// The spatial dimensions of a shape of rank 2 or more.
    pub fn spatial(self, shape: &[usize]) -> &[usize] {
        let first = self.spatial_axis();
        &shape[first..first + shape.len() - 2]
    }

    /// The shape of these sizes.
    pub fn shape(self, batch: usize, spatial: &[usize], channels: usize) -> Vec<usize> {
        let mut shape = vec![batch];
        if self == Layout::Nchw {
            shape.push(channels);
        }
        shape.extend(spatial);
        if self == Layout::Nhwc {
            shape.push(channels);
        }
        shape
    }

    /// Distances in elements between neighbours in a tensor of these sizes.
    pub(super) fn strides(self, spatial: &[usize], channels: usize) -> Strides {
        let shape = self.shape(1, spatial, channels);
        let all = axes::strides(&shape);
        let first = self.spatial_axis();
        Strides {
            batch: shape.iter().product(),
            channel: all[self.channel_axis(shape.len())],
            channels,
            spatial: all[first..first + spatial.len()].to_vec(),
            sizes: spatial.to_vec(),
        }
    }
}

/// Distances in elements between neighbours of a non-empty tensor.
pub(super) struct Strides {
    pub batch: usize,
    pub channel: usize,
    pub spatial: Vec<usize>,
    channels: usize,
    sizes: Vec<usize>,
}

impl Strides {
    /// Batch index of element `at`.
    pub fn batch_of(&self, at: usize) -> usize {
        at / self.batch
    }

    /// Channel of element `at`.
    pub fn channel_of(&self, at: usize) -> usize {
        at / self.channel % self.channels
    }

    /// Index of element `at` along spatial axis `d`.
    pub fn spatial_of(&self, at: usize, d: usize) -> usize {
        at / self.spatial[d] % self.sizes[d]
    }
}

/// How the input is padded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Padding {
    /// Amounts before each spatial axis, then after each; empty for none.
    Explicit(Vec<usize>),
    /// So that the output is the input divided by the stride, rounded up; odd amounts end.
    SameUpper,
    /// As [`Padding::SameUpper`], odd amounts begin.
    SameLower,
}

impl Default for Padding {
    fn default() -> Padding {
        Padding::Explicit(Vec::new())
    }
}

/// The window of a convolution or pool. An empty list stands for its default: a kernel as large
/// as the weight says, strides and dilations of 1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Window {
    /// Size along each spatial axis.
    pub kernel: Vec<usize>,
    /// Step along each spatial axis.
    pub strides: Vec<usize>,
    /// Distance between taps along each spatial axis.
    pub dilations: Vec<usize>,
    /// Padding of the input.
    pub padding: Padding,
}

/// Larger attribute values have no use and would overflow products.
const LIMIT: i64 = i32::MAX as i64;

impl Window {
    /// A window with explicit padding, amounts before each axis first.
    pub fn new(kernel: &[usize], strides: &[usize], pads: &[usize]) -> Window {
        Window {
            kernel: kernel.to_vec(),
            strides: strides.to_vec(),
            dilations: Vec::new(),
            padding: Padding::Explicit(pads.to_vec()),
        }
    }

    /// Reads `kernel_shape`, `strides`, `dilations`, `pads` and `auto_pad`.
    ///
    /// # Errors
    /// When one is negative, zero where that makes no sense, or absurdly large.
    pub fn parse(attributes: &Attributes) -> Result<Window, OpError> {
        let list = |name: &str, least: i64| -> Result<Vec<usize>, OpError> {
            let values = attributes.ints(name)?.unwrap_or_default();
            values
                .iter()
                .map(|&v| {
                    usize::try_from(v).ok().filter(|_| (least..=LIMIT).contains(&v)).ok_or_else(
                        || {
                            OpError::invalid(format!(
                                "attribute {name} holds {v}, must be {least} to {LIMIT}"
                            ))
                        },
                    )
                })
                .collect()
        };
        let pads = list("pads", 0)?;
        let padding = match attributes.string("auto_pad")?.as_deref() {
            None | Some("NOTSET" | "") => Padding::Explicit(pads),
            Some("VALID") => Padding::default(),
            Some("SAME_UPPER") => Padding::SameUpper,
            Some("SAME_LOWER") => Padding::SameLower,
            Some(other) => {
                return Err(OpError::invalid(format!(
                    "attribute auto_pad is '{other}', must be NOTSET, VALID, SAME_UPPER or \
                     SAME_LOWER"
                )));
            }
        };
        Ok(Window {
            kernel: list("kernel_shape", 1)?,
            strides: list("strides", 1)?,
            dilations: list("dilations", 1)?,
            padding,
        })
    }

    /// The attributes that [`Window::parse`] reads.
    pub fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mut result = Vec::new();
        let mut list = |name, values: &[usize]| {
            if !values.is_empty() {
                let values = values.iter().map(|&v| i64::try_from(v).unwrap_or(LIMIT)).collect();
                result.push((name, AttributeValue::Ints(values)));
            }
        };
        list("kernel_shape", &self.kernel);
        list("strides", &self.strides);
        list("dilations", &self.dilations);
        match &self.padding {
            Padding::Explicit(pads) => list("pads", pads),
            Padding::SameUpper => result.push(("auto_pad", "SAME_UPPER".into())),
            Padding::SameLower => result.push(("auto_pad", "SAME_LOWER".into())),
        }
        result
    }

    /// One value per spatial axis, with the default where the attribute is absent.
    pub(super) fn per_axis(
        values: &[usize],
        default: usize,
        rank: usize,
        name: &str,
    ) -> Result<Vec<usize>, OpError> {
        match values.len() {
            0 => Ok(vec![default; rank]),
            n if n == rank => Ok(values.to_vec()),
            n => Err(OpError::invalid(format!(
                "attribute {name} has {n} values for {rank} spatial dimensions"
            ))),
        }
    }

    /// The kernel size: the attribute, or what the weight says, which must agree.
    pub(super) fn kernel_of(&self, weight: &[usize]) -> Result<Vec<usize>, OpError> {
        if !self.kernel.is_empty() && self.kernel != weight {
            return Err(OpError::invalid(format!(
                "attribute kernel_shape is {:?}, the weight's kernel is {weight:?}",
                self.kernel
            )));
        }
        if weight.contains(&0) {
            return Err(OpError::invalid(format!("the weight's kernel {weight:?} is empty")));
        }
        Ok(weight.to_vec())
    }

    /// The window placed on an input of these spatial dimensions. With `ceil`, an output size is
    /// rounded up, as long as its last window begins inside the input or its leading padding.
    ///
    /// # Errors
    /// When an attribute has another length than `input`, or the window does not fit.
    pub fn place(
        &self,
        input: &[usize],
        kernel: &[usize],
        ceil: bool,
    ) -> Result<Geometry, OpError> {
        let rank = input.len();
        let strides = Window::per_axis(&self.strides, 1, rank, "strides")?;
        let dilations = Window::per_axis(&self.dilations, 1, rank, "dilations")?;
        let kernel = Window::per_axis(kernel, 1, rank, "kernel_shape")?;
        let mut g = Geometry {
            input: input.to_vec(),
            span: Vec::with_capacity(rank),
            begin: vec![0; rank],
            end: vec![0; rank],
            output: Vec::with_capacity(rank),
            kernel,
            strides,
            dilations,
        };
        if let Padding::Explicit(pads) = &self.padding
            && !pads.is_empty()
        {
            if pads.len() != 2 * rank {
                return Err(OpError::invalid(format!(
                    "attribute pads has {} values for {rank} spatial dimensions",
                    pads.len()
                )));
            }
            g.begin.copy_from_slice(&pads[..rank]);
            g.end.copy_from_slice(&pads[rank..]);
        }
        for i in 0..rank {
            let too_large =
                || OpError::invalid("kernel_shape, dilations and pads are too large".to_owned());
            let span = (g.kernel[i] - 1)
                .checked_mul(g.dilations[i])
                .and_then(|s| s.checked_add(1))
                .ok_or_else(too_large)?;
            let stride = g.strides[i];
            let same = matches!(self.padding, Padding::SameUpper | Padding::SameLower);
            if same && input[i] > 0 {
                let target = input[i].div_ceil(stride);
                let needed = (target - 1)
                    .checked_mul(stride)
                    .and_then(|n| n.checked_add(span))
                    .ok_or_else(too_large)?
                    .saturating_sub(input[i]);
                let less = needed / 2;
                (g.begin[i], g.end[i]) = match self.padding {
                    Padding::SameLower => (needed - less, less),
                    _ => (less, needed - less),
                };
            }
            let padded = input[i]
                .checked_add(g.begin[i])
                .and_then(|n| n.checked_add(g.end[i]))
                .ok_or_else(too_large)?;
            let output = match padded.checked_sub(span) {
                Some(slack) => {
                    let begins_inside = |n: usize| n * stride < input[i] + g.begin[i];
                    let floor = slack / stride + 1;
                    let more = ceil && slack % stride != 0 && begins_inside(floor);
                    floor + usize::from(more)
                }
                // A single window that reaches beyond the input by less than a stride.
                None if ceil && span - padded < stride => 1,
                None => {
                    return Err(OpError::invalid(format!(
                        "the window spans {span} elements along spatial axis {i} (kernel_shape \
                         {}, dilations {}), the padded input has {padded}",
                        g.kernel[i], g.dilations[i]
                    )));
                }
            };
            g.span.push(span);
            g.output.push(output);
        }
        Ok(g)
    }
}

/// A [`Window`] on an input of known size. One entry per spatial axis in every list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Input size.
    pub input: Vec<usize>,
    /// Kernel size.
    pub kernel: Vec<usize>,
    /// Step of the window.
    pub strides: Vec<usize>,
    /// Distance between taps.
    pub dilations: Vec<usize>,
    /// Elements that the dilated kernel spans.
    pub span: Vec<usize>,
    /// Padding before the input.
    pub begin: Vec<usize>,
    /// Padding after the input.
    pub end: Vec<usize>,
    /// Output size.
    pub output: Vec<usize>,
}

impl Geometry {
    /// The taps that fall on the input, for the output at index `output(d)` along each spatial
    /// axis d: number of the tap in the kernel, and offset in an input with these strides.
    pub(super) fn taps<'a>(
        &'a self,
        output: impl Fn(usize) -> usize + 'a,
        strides: &'a [usize],
    ) -> impl Iterator<Item = (usize, usize)> + 'a {
        let count: usize = self.kernel.iter().product();
        (0..count).filter_map(move |tap| {
            let (mut rest, mut offset) = (tap, 0);
            for d in (0..strides.len()).rev() {
                let k = rest % self.kernel[d];
                rest /= self.kernel[d];
                let padded = output(d) * self.strides[d] + k * self.dilations[d];
                let i = padded.checked_sub(self.begin[d]).filter(|&i| i < self.input[d])?;
                offset += i * strides[d];
            }
            Some((tap, offset))
        })
    }

    /// How many taps fall on the padded input, for an output as in [`Geometry::taps`].
    pub(super) fn padded_taps(&self, output: impl Fn(usize) -> usize) -> usize {
        let along = |d: usize| {
            let padded = self.begin[d] + self.input[d] + self.end[d];
            let room = padded.saturating_sub(output(d) * self.strides[d]);
            room.div_ceil(self.dilations[d]).min(self.kernel[d])
        };
        (0..self.input.len()).map(along).product()
    }

    /// The last two spatial axes as height and width, if there are at most two: a missing height
    /// is 1.
    pub fn two_dimensional(&self) -> Option<Flat> {
        let pair = |v: &[usize], missing: usize| match *v {
            [w] => Some([missing, w]),
            [h, w] => Some([h, w]),
            _ => None,
        };
        let (begin, end) = (pair(&self.begin, 0)?, pair(&self.end, 0)?);
        Some(Flat {
            input: pair(&self.input, 1)?,
            output: pair(&self.output, 1)?,
            kernel: pair(&self.kernel, 1)?,
            strides: pair(&self.strides, 1)?,
            dilations: pair(&self.dilations, 1)?,
            pads: [begin[0], begin[1], end[0], end[1]],
        })
    }

    /// The spatial axis along which outputs are computed in contiguous parts: the first longer
    /// than 1, unless the input is longer than 1 along an earlier one.
    pub fn split_axis(&self) -> Option<usize> {
        let axis = axes::first_long(&self.output)?;
        self.input[..axis].iter().all(|&d| d == 1).then_some(axis)
    }

    /// The window for outputs `range` along spatial axis `axis`, and the input range it reads.
    /// `None` when it reads padding only.
    pub fn part(&self, axis: usize, range: &Range<usize>) -> Option<(Window, Range<usize>)> {
        let (stride, size) = (self.strides[axis], self.input[axis]);
        // In coordinates of the padded input; a rounded-up output may reach beyond it.
        let first = range.start * stride;
        let padded = self.begin[axis] + size + self.end[axis];
        let last = ((range.end.checked_sub(1)?) * stride + self.span[axis]).min(padded);
        let start = first.saturating_sub(self.begin[axis]);
        let stop = last.saturating_sub(self.begin[axis]).min(size);
        if start >= stop {
            return None;
        }
        let (mut begin, mut end) = (self.begin.clone(), self.end.clone());
        begin[axis] = self.begin[axis].saturating_sub(first);
        end[axis] = last.saturating_sub(self.begin[axis] + size);
        begin.extend(end);
        let window = Window {
            kernel: self.kernel.clone(),
            strides: self.strides.clone(),
            dilations: self.dilations.clone(),
            padding: Padding::Explicit(begin),
        };
        Some((window, start..stop))
    }
}

/// A [`Geometry`] of two spatial axes, height before width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Flat {
    pub input: [usize; 2],
    pub output: [usize; 2],
    pub kernel: [usize; 2],
    pub strides: [usize; 2],
    pub dilations: [usize; 2],
    /// Top, left, bottom, right.
    pub pads: [usize; 4],
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(kernel: usize, stride: usize, dilation: usize, padding: Padding) -> Window {
        Window { kernel: vec![kernel], strides: vec![stride], dilations: vec![dilation], padding }
    }

    #[test]
    fn same_padding_puts_the_odd_element_where_it_says() {
        let upper = window(3, 2, 1, Padding::SameUpper).place(&[6], &[3], false).unwrap();
        assert_eq!((upper.begin[0], upper.end[0], upper.output[0]), (0, 1, 3));
        let lower = window(3, 2, 1, Padding::SameLower).place(&[6], &[3], false).unwrap();
        assert_eq!((lower.begin[0], lower.end[0], lower.output[0]), (1, 0, 3));
        let wide = window(1, 3, 1, Padding::SameUpper).place(&[7], &[1], false).unwrap();
        assert_eq!((wide.begin[0], wide.end[0], wide.output[0]), (0, 0, 3));
    }

    #[test]
    fn rounding_up_drops_windows_that_begin_in_the_end_padding() {
        let pads = |b, e| Padding::Explicit(vec![b, e]);
        let place = |k, s, p, n: usize| window(k, s, 1, p).place(&[n], &[k], true).unwrap();
        assert_eq!(place(3, 2, pads(0, 0), 4).output, [2]);
        assert_eq!(place(3, 2, pads(0, 0), 5).output, [2]);
        assert_eq!(place(1, 2, pads(0, 1), 1).output, [1]);
        assert_eq!(place(2, 3, pads(1, 1), 4).output, [2]);
    }

    #[test]
    fn hostile_windows_are_refused() {
        let huge = window(usize::MAX, 1, usize::MAX, Padding::default());
        assert!(huge.place(&[4], &[usize::MAX], false).is_err());
        let pads = window(3, 1, 1, Padding::Explicit(vec![usize::MAX, 1]));
        assert!(pads.place(&[4], &[3], false).is_err());
        let error = window(5, 1, 1, Padding::default()).place(&[4], &[5], false).unwrap_err();
        assert!(error.to_string().contains("kernel_shape 5"), "{error}");
        assert!(window(3, 1, 1, Padding::SameUpper).place(&[0], &[3], false).is_err());
    }

    /// Every part of every range has the size of its range.
    #[test]
    fn parts_have_the_size_of_their_range() {
        for (n, k, s, d, b, e) in
            [(9, 3, 2, 1, 1, 1), (10, 3, 2, 2, 2, 0), (7, 2, 3, 1, 0, 1), (8, 1, 2, 1, 0, 0)]
        {
            for ceil in [false, true] {
                let w = window(k, s, d, Padding::Explicit(vec![b, e]));
                let g = w.place(&[n], &[k], ceil).unwrap();
                for start in 0..g.output[0] {
                    for end in start + 1..=g.output[0] {
                        let (part, rows) = g.part(0, &(start..end)).unwrap();
                        let sub = part.place(&[rows.len()], &[k], ceil).unwrap();
                        assert_eq!(sub.output[0], end - start, "{w:?} {n} {ceil} {start}..{end}");
                    }
                }
            }
        }
    }
}
