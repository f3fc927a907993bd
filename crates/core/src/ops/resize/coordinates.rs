//! From output positions to input positions and weights, along one axis.

use crate::ops::{AttributeValue, OpError};

/// How an output position maps to an input position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum CoordinateMode {
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    AlignCorners,
    Asymmetric,
    TfCropAndResize,
}

const NAMES: [(CoordinateMode, &str); 6] = [
    (CoordinateMode::HalfPixel, "half_pixel"),
    (CoordinateMode::HalfPixelSymmetric, "half_pixel_symmetric"),
    (CoordinateMode::PytorchHalfPixel, "pytorch_half_pixel"),
    (CoordinateMode::AlignCorners, "align_corners"),
    (CoordinateMode::Asymmetric, "asymmetric"),
    (CoordinateMode::TfCropAndResize, "tf_crop_and_resize"),
];

impl CoordinateMode {
    pub(super) fn parse(name: Option<&str>) -> Result<CoordinateMode, OpError> {
        let Some(name) = name else { return Ok(CoordinateMode::HalfPixel) };
        NAMES.iter().find(|(_, n)| *n == name).map(|(mode, _)| *mode).ok_or_else(|| {
            let names: Vec<&str> = NAMES.iter().map(|(_, n)| *n).collect();
            OpError::unsupported(format!(
                "coordinate_transformation_mode '{name}' (supported: {})",
                names.join(", ")
            ))
        })
    }

    /// The ONNX name.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(mode, _)| *mode == self).map_or("", |(_, name)| name)
    }

    /// The input position of output `i`, in f32 as ONNX Runtime computes it: which neighbour is
    /// nearest may hang on the rounding.
    pub(super) fn source(self, i: usize, axis: &Axis) -> f32 {
        let x = i as f32;
        let (input, output) = (axis.input as f32, axis.output as f32);
        let half_pixel = (x + 0.5) / axis.scale - 0.5;
        match self {
            CoordinateMode::HalfPixel => half_pixel,
            CoordinateMode::HalfPixelSymmetric => {
                let adjustment = output / (axis.scale * input);
                let offset = input / 2.0 * (1.0 - adjustment);
                offset + half_pixel
            }
            CoordinateMode::PytorchHalfPixel if axis.output > 1 => half_pixel,
            CoordinateMode::PytorchHalfPixel => 0.0,
            CoordinateMode::AlignCorners if axis.output > 1 => x * (input - 1.0) / (output - 1.0),
            CoordinateMode::AlignCorners => 0.0,
            CoordinateMode::Asymmetric => x / axis.scale,
            CoordinateMode::TfCropAndResize => {
                let (start, end) = axis.region;
                if axis.output > 1 {
                    start * (input - 1.0) + x * (end - start) * (input - 1.0) / (output - 1.0)
                } else {
                    0.5 * (start + end) * (input - 1.0)
                }
            }
        }
    }
}

/// Which neighbour a position between two takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NearestMode {
    /// The nearer, of equally near ones the left.
    RoundPreferFloor,
    /// The nearer, of equally near ones the right.
    RoundPreferCeil,
    /// The left.
    Floor,
    /// The right.
    Ceil,
    /// Before opset 11: the left when growing, the right when shrinking.
    Simple,
}

/// How values are interpolated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Interpolation {
    /// The value of a neighbour.
    Nearest(NearestMode),
    /// A line between two neighbours.
    Linear {
        /// Neighbours outside of the input do not count.
        exclude_outside: bool,
        /// When shrinking, all values that an output covers count.
        antialias: bool,
    },
    /// A cubic through four neighbours.
    Cubic {
        /// Shape of the cubic.
        a: f32,
        /// Neighbours outside of the input do not count.
        exclude_outside: bool,
        /// When shrinking, all values that an output covers count.
        antialias: bool,
    },
}

impl Interpolation {
    pub(super) fn parse(
        mode: &str,
        nearest: Option<&str>,
        a: f32,
        exclude_outside: bool,
        antialias: bool,
    ) -> Result<Interpolation, OpError> {
        Ok(match mode {
            "nearest" => Interpolation::Nearest(match nearest {
                None | Some("round_prefer_floor") => NearestMode::RoundPreferFloor,
                Some("round_prefer_ceil") => NearestMode::RoundPreferCeil,
                Some("floor") => NearestMode::Floor,
                Some("ceil") => NearestMode::Ceil,
                Some(other) => {
                    return Err(OpError::invalid(format!(
                        "attribute nearest_mode is '{other}', must be round_prefer_floor, \
                         round_prefer_ceil, floor or ceil"
                    )));
                }
            }),
            "linear" => Interpolation::Linear { exclude_outside, antialias },
            "cubic" => Interpolation::Cubic { a, exclude_outside, antialias },
            other => {
                return Err(OpError::invalid(format!(
                    "attribute mode is '{other}', must be nearest, linear or cubic"
                )));
            }
        })
    }

    /// The attributes that [`Interpolation::parse`] reads, `mode` first.
    pub(super) fn attributes(self) -> Vec<(&'static str, AttributeValue)> {
        let (mode, exclude_outside, antialias) = match self {
            Interpolation::Nearest(_) => ("nearest", false, false),
            Interpolation::Linear { exclude_outside, antialias } => {
                ("linear", exclude_outside, antialias)
            }
            Interpolation::Cubic { exclude_outside, antialias, .. } => {
                ("cubic", exclude_outside, antialias)
            }
        };
        let mut list: Vec<(&'static str, AttributeValue)> = vec![("mode", mode.into())];
        match self {
            Interpolation::Nearest(mode) => {
                let name = match mode {
                    NearestMode::RoundPreferFloor => "round_prefer_floor",
                    NearestMode::RoundPreferCeil => "round_prefer_ceil",
                    NearestMode::Ceil => "ceil",
                    NearestMode::Floor | NearestMode::Simple => "floor",
                };
                list.push(("nearest_mode", name.into()));
            }
            Interpolation::Cubic { a, .. } => list.push(("cubic_coeff_a", a.into())),
            Interpolation::Linear { .. } => {}
        }
        if exclude_outside {
            list.push(("exclude_outside", 1i64.into()));
        }
        if antialias {
            list.push(("antialias", 1i64.into()));
        }
        list
    }

    /// Neighbours and weights of every output along an axis that is not empty.
    pub(super) fn taps(self, coordinates: CoordinateMode, axis: &Axis) -> Taps {
        let (reach, exclude_outside, antialias) = match self {
            Interpolation::Nearest(mode) => {
                let pick = |i| nearest(mode, coordinates.source(i, axis), axis);
                let indices: Vec<usize> = (0..axis.output).map(pick).collect();
                return Taps { count: 1, weights: vec![1.0; indices.len()], indices };
            }
            Interpolation::Linear { exclude_outside, antialias } => {
                (1.0, exclude_outside, antialias)
            }
            Interpolation::Cubic { exclude_outside, antialias, .. } => {
                (2.0, exclude_outside, antialias)
            }
        };
        if axis.output == 0 {
            return Taps { count: 0, indices: Vec::new(), weights: Vec::new() };
        }
        // With antialiasing, a shrinking filter is as much wider as the output is smaller.
        let shrink = if antialias { axis.scale.min(1.0) } else { 1.0 };
        let first = (-reach / shrink).floor() as isize + 1;
        let count = (2 - 2 * first).unsigned_abs();
        let last = isize::try_from(axis.input).unwrap_or(isize::MAX) - 1;
        let mut taps = Taps { count, indices: Vec::new(), weights: Vec::new() };
        for i in 0..axis.output {
            let x = coordinates.source(i, axis);
            let base = x.floor();
            let start = taps.weights.len();
            for tap in (first..).take(count) {
                let at = (base as isize).saturating_add(tap);
                let distance = ((tap as f32) - (x - base)) * shrink;
                let excluded = exclude_outside && !(0..=last).contains(&at);
                taps.weights.push(if excluded { 0.0 } else { self.weight(distance.abs()) });
                taps.indices.push(at.clamp(0, last).unsigned_abs());
            }
            if exclude_outside || antialias {
                let own = &mut taps.weights[start..];
                let sum: f32 = own.iter().sum();
                if sum != 0.0 {
                    own.iter_mut().for_each(|w| *w /= sum);
                }
            }
        }
        taps
    }

    /// The filter at a distance.
    fn weight(self, x: f32) -> f32 {
        match self {
            Interpolation::Nearest(_) => 1.0,
            Interpolation::Linear { .. } => (1.0 - x).max(0.0),
            Interpolation::Cubic { a, .. } if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
            Interpolation::Cubic { a, .. } if x < 2.0 => {
                ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
            }
            Interpolation::Cubic { .. } => 0.0,
        }
    }
}

fn nearest(mode: NearestMode, x: f32, axis: &Axis) -> usize {
    let rounded = match mode {
        NearestMode::RoundPreferFloor => (x - 0.5).ceil(),
        NearestMode::RoundPreferCeil => (x + 0.5).floor(),
        NearestMode::Floor => x.floor(),
        NearestMode::Ceil => x.ceil(),
        NearestMode::Simple if axis.scale < 1.0 => x.ceil(),
        NearestMode::Simple => x.floor(),
    };
    // A float below zero becomes 0 here.
    (rounded as usize).min(axis.input.saturating_sub(1))
}

/// Neighbours and their weights: `count` for every output.
pub(super) struct Taps {
    count: usize,
    indices: Vec<usize>,
    weights: Vec<f32>,
}

impl Taps {
    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn index(&self, output: usize, tap: usize) -> usize {
        self.indices[output * self.count + tap]
    }

    pub(super) fn weight(&self, output: usize, tap: usize) -> f32 {
        self.weights[output * self.count + tap]
    }
}

/// Sizes of one axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    pub input: usize,
    pub output: usize,
    pub scale: f32,
    /// Start and end of the region, as fractions of the axis.
    pub region: (f32, f32),
}

impl Axis {
    pub(super) fn unchanged(size: usize) -> Axis {
        Axis { input: size, output: size, scale: 1.0, region: (0.0, 1.0) }
    }

    pub(super) fn is_unchanged(&self) -> bool {
        self.input == self.output && self.scale == 1.0
    }

    pub(super) fn scale_by(&mut self, scale: f32) -> Result<(), OpError> {
        self.output = size_of(self.input, scale, f32::floor)?;
        self.scale = scale;
        Ok(())
    }

    /// Scales with the size rounded to the nearest.
    pub(super) fn scale_rounded(&mut self, scale: f32) -> Result<(), OpError> {
        self.output = size_of(self.input, scale, f32::round)?;
        self.scale = scale;
        Ok(())
    }

    pub(super) fn resize_to(&mut self, size: usize) {
        self.output = size;
        self.scale = if self.input == 0 { 1.0 } else { size as f32 / self.input as f32 };
    }
}

fn size_of(input: usize, scale: f32, round: fn(f32) -> f32) -> Result<usize, OpError> {
    let size = round(input as f32 * scale);
    if !(scale > 0.0 && scale.is_finite() && size < 2e9) {
        return Err(OpError::invalid(format!(
            "scale {scale} of an axis of {input} elements must be positive, and the result \
             below 2e9 elements"
        )));
    }
    Ok(size as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_between_two_neighbours_round_as_they_say() {
        let axis = Axis { input: 10, output: 10, scale: 1.0, region: (0.0, 1.0) };
        let pick = |mode, x| nearest(mode, x, &axis);
        assert_eq!(pick(NearestMode::RoundPreferFloor, 2.5), 2);
        assert_eq!(pick(NearestMode::RoundPreferCeil, 2.5), 3);
        assert_eq!(pick(NearestMode::RoundPreferFloor, 2.6), 3);
        assert_eq!(pick(NearestMode::RoundPreferCeil, 2.4), 2);
        assert_eq!(pick(NearestMode::Floor, 2.9), 2);
        assert_eq!(pick(NearestMode::Ceil, 2.1), 3);
        assert_eq!(pick(NearestMode::Floor, -0.5), 0);
        assert_eq!(pick(NearestMode::Ceil, 11.0), 9);
    }

    #[test]
    fn hostile_scales_are_refused() {
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e30] {
            assert!(Axis::unchanged(4).scale_by(scale).is_err(), "{scale}");
        }
    }

    #[test]
    fn weights_add_up_to_one() {
        let axis = Axis { input: 7, output: 3, scale: 3.0 / 7.0, region: (0.0, 1.0) };
        for (exclude_outside, antialias) in [(false, false), (true, false), (true, true)] {
            for filter in [
                Interpolation::Linear { exclude_outside, antialias },
                Interpolation::Cubic { a: -0.75, exclude_outside, antialias },
            ] {
                let taps = filter.taps(CoordinateMode::HalfPixel, &axis);
                for i in 0..3 {
                    let sum: f32 = (0..taps.count()).map(|t| taps.weight(i, t)).sum();
                    assert!((sum - 1.0).abs() < 1e-5, "{filter:?} {i}: {sum}");
                }
            }
        }
    }
}
