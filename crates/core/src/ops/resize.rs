//! Resize and Upsample: nearest, linear and cubic interpolation along any axes, one axis at a
//! time.

mod coordinates;
mod passes;

use std::sync::Arc;

pub use coordinates::{CoordinateMode, Interpolation, NearestMode};

use super::{
    AttributeValue, Attributes, CpuKernel, Example, InputsExt, Op, OpError, OpSpec, Operand,
    Operands, Permuted, axes, floats, integers, number::for_dtype,
};
use crate::tensor::{Tensor, TensorType};
use coordinates::Axis;

const RESIZE: OpSpec = OpSpec {
    name: "Resize",
    domain: "",
    since: 10,
    inputs: (1, 4),
    outputs: (1, 1),
    parse: |a| Ok(Arc::new(Resize::parse(a)?)),
    examples,
};

pub(super) const SPECS: &[OpSpec] = &[
    RESIZE,
    OpSpec {
        name: "Upsample",
        since: 7,
        inputs: (1, 2),
        parse: |a| Ok(Arc::new(Resize::parse_upsample(a)?)),
        examples: upsample_examples,
        ..RESIZE
    },
];

/// What the sizes mean when they would distort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AspectPolicy {
    /// They are the sizes.
    #[default]
    Stretch,
    /// All axes are scaled alike, no size above the given one.
    NotLarger,
    /// All axes are scaled alike, no size below the given one.
    NotSmaller,
}

/// Where scales and sizes are found.
#[derive(Clone, Debug, PartialEq)]
pub enum ResizeInputs {
    /// Inputs: x, region, scales, sizes; one of the last two.
    Modern,
    /// Inputs: x, scales (Resize of opset 10, Upsample of opset 9).
    ScalesOnly {
        /// The operator is Upsample.
        upsample: bool,
    },
    /// The operator is Upsample with scales as an attribute (opset 8 and older).
    Attribute(Vec<f32>),
}

/// Interpolation to another size. Output: x's type, other sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct Resize {
    /// How values are interpolated.
    pub interpolation: Interpolation,
    /// How output positions map to input positions.
    pub coordinates: CoordinateMode,
    /// Value outside of the region for [`CoordinateMode::TfCropAndResize`].
    pub extrapolation: f32,
    /// The axes that scales, sizes and region speak of; `None` for all.
    pub axes: Option<Vec<i64>>,
    /// What sizes mean.
    pub policy: AspectPolicy,
    /// Where scales and sizes are found.
    pub inputs: ResizeInputs,
}

impl Resize {
    fn parse(attributes: &Attributes) -> Result<Resize, OpError> {
        let mode = attributes.string("mode")?.unwrap_or_else(|| "nearest".to_owned());
        if attributes.opset < 11 {
            return Resize::simple(&mode, ResizeInputs::ScalesOnly { upsample: false });
        }
        let nearest = attributes.string("nearest_mode")?;
        let cubic_a = attributes.float_or("cubic_coeff_a", -0.75)?;
        let exclude_outside = attributes.flag("exclude_outside", false)?;
        let antialias = attributes.flag("antialias", false)?;
        let policy = match attributes.string("keep_aspect_ratio_policy")?.as_deref() {
            None | Some("stretch") => AspectPolicy::Stretch,
            Some("not_larger") => AspectPolicy::NotLarger,
            Some("not_smaller") => AspectPolicy::NotSmaller,
            Some(other) => {
                return Err(OpError::invalid(format!(
                    "attribute keep_aspect_ratio_policy is '{other}', must be stretch, \
                     not_larger or not_smaller"
                )));
            }
        };
        Ok(Resize {
            interpolation: Interpolation::parse(
                &mode,
                nearest.as_deref(),
                cubic_a,
                exclude_outside,
                antialias,
            )?,
            coordinates: CoordinateMode::parse(
                attributes.string("coordinate_transformation_mode")?.as_deref(),
            )?,
            extrapolation: attributes.float_or("extrapolation_value", 0.0)?,
            axes: attributes.ints("axes")?,
            policy,
            inputs: ResizeInputs::Modern,
        })
    }

    fn parse_upsample(attributes: &Attributes) -> Result<Resize, OpError> {
        let mode = attributes.string("mode")?.unwrap_or_else(|| "nearest".to_owned());
        let inputs = match attributes.floats("scales")? {
            Some(scales) => ResizeInputs::Attribute(scales),
            None => ResizeInputs::ScalesOnly { upsample: true },
        };
        Resize::simple(&mode, inputs)
    }

    /// The semantics of before opset 11.
    fn simple(mode: &str, inputs: ResizeInputs) -> Result<Resize, OpError> {
        let interpolation = match mode {
            "nearest" => Interpolation::Nearest(NearestMode::Simple),
            "linear" | "bilinear" => {
                Interpolation::Linear { exclude_outside: false, antialias: false }
            }
            other => {
                return Err(OpError::invalid(format!(
                    "attribute mode is '{other}', must be nearest or linear"
                )));
            }
        };
        Ok(Resize {
            interpolation,
            coordinates: CoordinateMode::Asymmetric,
            extrapolation: 0.0,
            axes: None,
            policy: AspectPolicy::Stretch,
            inputs,
        })
    }

    /// Every axis of the input: sizes, scale and region.
    fn resolve(&self, inputs: &[Option<Operand>]) -> Result<Vec<Axis>, OpError> {
        let shape = inputs.required(0, "X")?.shape();
        let spoken_of = match &self.axes {
            Some(list) => axes::axes(list, shape.len())?,
            None => (0..shape.len()).collect(),
        };
        let mut result: Vec<Axis> = shape.iter().map(|&n| Axis::unchanged(n)).collect();
        let (scales_at, sizes_at) = match self.inputs {
            ResizeInputs::Modern => (Some(2), Some(3)),
            ResizeInputs::ScalesOnly { .. } => (Some(1), None),
            ResizeInputs::Attribute(_) => (None, None),
        };
        let scales = match &self.inputs {
            ResizeInputs::Attribute(scales) => Some(scales.clone()),
            _ => scales_at.map(|i| constant_floats(inputs, i, "scales")).transpose()?.flatten(),
        };
        let sizes = sizes_at.map(|i| inputs.integers(i, "sizes")).transpose()?.flatten();
        let count = |given: usize, name: &str| {
            if given == spoken_of.len() {
                return Ok(());
            }
            Err(OpError::invalid(format!("{name} has {given} values for {} axes", spoken_of.len())))
        };
        match (scales.filter(|s| !s.is_empty()), sizes.filter(|s| !s.is_empty())) {
            (Some(scales), None) => {
                count(scales.len(), "scales")?;
                for (&axis, &scale) in spoken_of.iter().zip(&scales) {
                    result[axis].scale_by(scale)?;
                }
            }
            (None, Some(sizes)) => {
                count(sizes.len(), "sizes")?;
                let sizes = sizes.iter().map(|&s| axes::dim(s)).collect::<Result<Vec<_>, _>>()?;
                self.resize_to(&mut result, &spoken_of, &sizes)?;
            }
            _ => return Err(OpError::invalid("one of scales and sizes must be given")),
        }
        if self.coordinates == CoordinateMode::TfCropAndResize {
            let roi = constant_floats(inputs, 1, "roi")?.unwrap_or_default();
            count(roi.len() / 2, "roi")?;
            for (i, &axis) in spoken_of.iter().enumerate() {
                result[axis].region = (roi[i], roi[i + spoken_of.len()]);
            }
        }
        for axis in &result {
            if axis.input == 0 && axis.output > 0 {
                return Err(OpError::invalid("an empty axis cannot be made longer"));
            }
        }
        Ok(result)
    }

    fn resize_to(
        &self,
        result: &mut [Axis],
        spoken_of: &[usize],
        sizes: &[usize],
    ) -> Result<(), OpError> {
        let ratios = spoken_of.iter().zip(sizes).map(|(&a, &s)| s as f32 / result[a].input as f32);
        let common = match self.policy {
            AspectPolicy::Stretch => None,
            AspectPolicy::NotLarger => Some(ratios.fold(f32::INFINITY, f32::min)),
            AspectPolicy::NotSmaller => Some(ratios.fold(0.0, f32::max)),
        };
        for (&axis, &size) in spoken_of.iter().zip(sizes) {
            match common {
                None => result[axis].resize_to(size),
                Some(scale) => result[axis].scale_rounded(scale)?,
            }
        }
        Ok(())
    }
}

/// Constant floats of input `i`: none when it is omitted.
fn constant_floats(
    inputs: &[Option<Operand>],
    i: usize,
    name: &str,
) -> Result<Option<Vec<f32>>, OpError> {
    let Some(operand) = inputs.optional(i) else { return Ok(None) };
    // An empty one says nothing, whatever it holds.
    if operand.ty.is_empty() {
        return Ok(None);
    }
    let value = operand.constant.as_ref().ok_or(OpError::DataDependent { input: i })?;
    if let Some(floats) = value.as_slice::<f32>() {
        return Ok(Some(floats.to_vec()));
    }
    if let Some(halves) = value.as_slice::<half::f16>() {
        return Ok(Some(halves.iter().map(|h| h.to_f32()).collect()));
    }
    if let Some(doubles) = value.as_slice::<f64>() {
        return Ok(Some(doubles.iter().map(|&v| v as f32).collect()));
    }
    Err(OpError::invalid(format!("input {i} ({name}) must hold floats, has {}", operand.ty.dtype)))
}

impl Op for Resize {
    fn op_type(&self) -> &'static str {
        match self.inputs {
            ResizeInputs::Modern | ResizeInputs::ScalesOnly { upsample: false } => "Resize",
            _ => "Upsample",
        }
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let shape: Vec<usize> = self.resolve(inputs)?.iter().map(|a| a.output).collect();
        Ok(vec![TensorType::new(inputs.required(0, "X")?.ty.dtype, shape)])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        let per_element = match self.interpolation {
            Interpolation::Nearest(_) => 1,
            Interpolation::Linear { .. } => 6,
            Interpolation::Cubic { .. } => 16,
        };
        per_element * x.output(0).len() as u64
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let resolved = self.resolve(x.inputs)?;
        let passes = passes::of(self, &resolved);
        let extrapolated = self.coordinates == CoordinateMode::TfCropAndResize;
        let dtype = x.output(0).dtype;
        if let Interpolation::Nearest(_) = self.interpolation
            && !extrapolated
        {
            return Ok(match dtype.size() {
                1 => passes::nearest::<u8>(passes),
                2 => passes::nearest::<u16>(passes),
                4 => passes::nearest::<u32>(passes),
                _ => passes::nearest::<u64>(passes),
            });
        }
        let outside = extrapolated.then_some(self.extrapolation);
        let outputs: Vec<usize> = resolved.iter().map(|a| a.output).collect();
        let inside: Vec<Vec<bool>> = resolved.iter().map(|a| self.inside(a)).collect();
        Ok(for_dtype!(dtype, T in [F32, F64, U8, I8, I32] => {
            passes::weighted::<T>(passes, outside.map(|v| passes::Outside { value: v, outputs, inside }))
        }))
    }

    fn permuted(&self, x: &Operands<'_>, perm: &[usize]) -> Option<Permuted> {
        if !matches!(self.inputs, ResizeInputs::Modern) {
            return None;
        }
        let rank = x.output(0).rank();
        let spoken_of = match &self.axes {
            Some(list) => axes::axes(list, rank).ok()?,
            None => (0..rank).collect(),
        };
        let moved = |axis: &usize| i64::try_from(perm.iter().position(|p| p == axis)?).ok();
        let axes = spoken_of.iter().map(moved).collect::<Option<_>>()?;
        let mut inputs = vec![Some(perm.to_vec())];
        inputs.resize(x.inputs.len(), None);
        Some(Permuted { op: Arc::new(Resize { axes: Some(axes), ..self.clone() }), inputs })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mut list = self.interpolation.attributes();
        match &self.inputs {
            ResizeInputs::Modern => {}
            // Older operators have the mode alone.
            other => {
                list.truncate(1);
                if let ResizeInputs::Attribute(scales) = other {
                    list.push(("scales", scales.clone().into()));
                }
                return list;
            }
        }
        list.push(("coordinate_transformation_mode", self.coordinates.name().into()));
        if self.extrapolation != 0.0 {
            list.push(("extrapolation_value", self.extrapolation.into()));
        }
        if let Some(axes) = &self.axes {
            list.push(("axes", axes.clone().into()));
        }
        match self.policy {
            AspectPolicy::Stretch => {}
            AspectPolicy::NotLarger => list.push(("keep_aspect_ratio_policy", "not_larger".into())),
            AspectPolicy::NotSmaller => {
                list.push(("keep_aspect_ratio_policy", "not_smaller".into()));
            }
        }
        list
    }
}

impl Resize {
    /// Which outputs along an axis lie inside the region.
    fn inside(&self, axis: &Axis) -> Vec<bool> {
        let last = axis.input.saturating_sub(1) as f32;
        (0..axis.output)
            .map(|i| {
                let at = self.coordinates.source(i, axis);
                (0.0..=last).contains(&at)
            })
            .collect()
    }
}

fn examples() -> Vec<Example> {
    let scales = |values: &[f32]| Tensor::from_slice([values.len()], values);
    vec![
        Example::new("nearest, twice as large, asymmetric, floor")
            .attribute("coordinate_transformation_mode", "asymmetric")
            .attribute("nearest_mode", "floor")
            .input(floats([1, 2, 3, 4], 1))
            .omitted()
            .constant(scales(&[1.0, 1.0, 2.0, 2.0])),
        Example::new("linear, half pixel, to sizes")
            .attribute("mode", "linear")
            .input(floats([1, 3, 4, 5], 1))
            .omitted()
            .omitted()
            .constant(integers(&[1, 3, 7, 3])),
        Example::new("cubic, aligned corners, two axes")
            .attribute("mode", "cubic")
            .attribute("coordinate_transformation_mode", "align_corners")
            .attribute("axes", [2, 3])
            .input(floats([1, 2, 4, 4], 1))
            .omitted()
            .constant(scales(&[1.5, 2.0])),
        Example::new("cubic, outside excluded, smaller with antialiasing")
            .attribute("mode", "cubic")
            .attribute("exclude_outside", 1i64)
            .attribute("antialias", 1i64)
            .input(floats([1, 1, 7, 6], 1))
            .omitted()
            .constant(scales(&[1.0, 1.0, 0.6, 0.5])),
        Example::new("a region, partly outside")
            .attribute("mode", "linear")
            .attribute("coordinate_transformation_mode", "tf_crop_and_resize")
            .attribute("extrapolation_value", 10.0f32)
            .input(floats([1, 1, 4, 4], 1))
            .constant(scales(&[0.0, 0.0, 0.4, 0.6, 1.0, 1.0, 1.2, 1.7]))
            .omitted()
            .constant(integers(&[1, 1, 3, 3])),
        Example::new("not larger than")
            .attribute("keep_aspect_ratio_policy", "not_larger")
            .attribute("axes", [2, 3])
            .input(floats([1, 1, 2, 4], 1))
            .omitted()
            .omitted()
            .constant(integers(&[7, 8])),
        Example::new("opset 10, smaller")
            .opset(10)
            .attribute("mode", "nearest")
            .input(floats([1, 1, 5, 7], 1))
            .constant(scales(&[1.0, 1.0, 0.6, 0.6])),
    ]
}

fn upsample_examples() -> Vec<Example> {
    vec![
        Example::new("scales as an attribute")
            .opset(8)
            .attribute("mode", "linear")
            .attribute("scales", vec![1.0f32, 1.0, 2.0, 1.5])
            .input(floats([1, 2, 3, 4], 1)),
        Example::new("scales as an input")
            .opset(9)
            .attribute("mode", "nearest")
            .input(floats([1, 1, 2, 3], 1))
            .constant(Tensor::from_slice([4], &[1.0f32, 1.0, 2.0, 3.0])),
    ]
}
