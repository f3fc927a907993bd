//! Operators that only rename dimensions: Reshape, Flatten, Squeeze, Unsqueeze, Identity, Dropout.

use std::sync::Arc;

use super::{
    AttributeValue, Attributes, CpuKernel, Example, InputsExt, Op, OpError, OpSpec, Operand,
    Operands, axes, floats, integers, kernel, runs,
};
use crate::{
    ir::Expansion,
    tensor::{DType, TensorType},
};

pub(super) const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "Reshape",
        domain: "",
        since: 5,
        inputs: (2, 2),
        outputs: (1, 1),
        parse: |a| Ok(Arc::new(Reshape { allow_zero: a.flag("allowzero", false)? })),
        examples: || {
            let x = || floats([2, 3, 4], 1);
            vec![
                Example::new("infer one").input(x()).constant(integers(&[3, -1])),
                Example::new("copy one").input(x()).constant(integers(&[0, 1, -1, 2])),
            ]
        },
    },
    OpSpec {
        name: "Flatten",
        domain: "",
        since: 1,
        inputs: (1, 1),
        outputs: (1, 1),
        parse: |a| Ok(Arc::new(Flatten { axis: a.int_or("axis", 1)? })),
        examples: || {
            let x = || floats([2, 3, 5], 1);
            vec![
                Example::new("from axis 1").input(x()),
                Example::new("from the end").input(x()).attribute("axis", -1),
            ]
        },
    },
    OpSpec {
        name: "Squeeze",
        domain: "",
        since: 1,
        inputs: (1, 2),
        outputs: (1, 1),
        parse: |a| Ok(Arc::new(Squeeze { axes: axes_attribute(a)? })),
        examples: || {
            let x = || floats([1, 3, 1, 5], 1);
            vec![
                Example::new("all").input(x()),
                Example::new("one").input(x()).constant(integers(&[-2])),
            ]
        },
    },
    OpSpec {
        name: "Unsqueeze",
        domain: "",
        since: 1,
        inputs: (1, 2),
        outputs: (1, 1),
        parse: |a| Ok(Arc::new(Unsqueeze { axes: axes_attribute(a)? })),
        examples: || {
            vec![Example::new("two").input(floats([3, 5], 1)).constant(integers(&[0, -1]))]
        },
    },
    OpSpec {
        name: "Identity",
        domain: "",
        since: 1,
        inputs: (1, 1),
        outputs: (1, 1),
        parse: |_| Ok(Arc::new(Identity)),
        examples: || vec![Example::new("plain").input(floats([3, 5], 1))],
    },
    OpSpec {
        name: "Dropout",
        domain: "",
        since: 7,
        inputs: (1, 3),
        outputs: (1, 2),
        parse: |a| {
            a.ignore(&["ratio", "seed"]);
            let mask = (a.outputs > 1).then_some(a.opset);
            Ok(Arc::new(Dropout { mask }))
        },
        examples: || {
            let x = || floats([3, 5], 1);
            vec![Example::new("plain").input(x()), Example::new("with mask").input(x()).outputs(2)]
        },
    },
];

/// `axes` is an attribute up to opset 12 and input 1 from 13 on.
fn axes_attribute(a: &Attributes) -> Result<Option<Vec<i64>>, OpError> {
    if a.opset < 13 { a.ints("axes") } else { Ok(None) }
}

fn axes_value(axes: Option<&Vec<i64>>) -> Vec<(&'static str, AttributeValue)> {
    axes.map(|axes| ("axes", AttributeValue::Ints(axes.clone()))).into_iter().collect()
}

/// The kernel of every operator here, where the plan cannot alias the buffers.
fn copy_kernel() -> Box<dyn CpuKernel> {
    kernel(|io, pool| {
        runs::copy(io.input(0).bytes, io.outputs[0].bytes, pool);
        Ok(())
    })
}

macro_rules! view {
    () => {
        fn flops(&self, _: &Operands<'_>) -> u64 {
            0
        }

        fn cpu(&self, _: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
            Ok(copy_kernel())
        }

        fn is_view(&self) -> bool {
            true
        }
    };
}

/// Gives the dimensions of input 1: 0 copies the input's, -1 is what remains.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reshape {
    /// 0 means a dimension of size 0.
    pub allow_zero: bool,
}

impl Op for Reshape {
    fn op_type(&self) -> &'static str {
        "Reshape"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "data")?;
        inputs.required(1, "shape")?;
        let wanted = inputs.integers(1, "shape")?.unwrap_or_default();
        let shape = self.resolve(x.shape(), &wanted)?;
        Ok(vec![TensorType::new(x.ty.dtype, shape)])
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        self.allow_zero.then_some(("allowzero", AttributeValue::Int(1))).into_iter().collect()
    }

    view!();
}

impl Reshape {
    fn resolve(&self, shape: &[usize], wanted: &[i64]) -> Result<Vec<usize>, OpError> {
        let len = axes::product(shape)?;
        let mut free = None;
        let mut result = Vec::with_capacity(wanted.len());
        for (i, &d) in wanted.iter().enumerate() {
            result.push(match d {
                0 if !self.allow_zero => *shape.get(i).ok_or_else(|| {
                    OpError::invalid(format!("shape {wanted:?} copies dimension {i} of {shape:?}"))
                })?,
                -1 if free.is_some() => {
                    return Err(OpError::invalid(format!("shape {wanted:?} has two -1")));
                }
                -1 => {
                    free = Some(i);
                    1
                }
                d => axes::dim(d)?,
            });
        }
        let mismatch = || OpError::invalid(format!("{shape:?} cannot be reshaped to {wanted:?}"));
        let known = axes::product(&result)?;
        if let Some(i) = free {
            if known == 0 || !len.is_multiple_of(known) {
                return Err(mismatch());
            }
            result[i] = len / known;
        } else if known != len {
            return Err(mismatch());
        }
        Ok(result)
    }
}

/// Joins the dimensions before `axis` and those from it on.
#[derive(Clone, Debug, PartialEq)]
pub struct Flatten {
    /// May equal the rank.
    pub axis: i64,
}

impl Op for Flatten {
    fn op_type(&self) -> &'static str {
        "Flatten"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "input")?;
        let rank = x.ty.rank();
        let axis = if usize::try_from(self.axis) == Ok(rank) {
            rank
        } else {
            axes::axis(self.axis, rank)?
        };
        let (outer, inner) = x.shape().split_at(axis);
        Ok(vec![TensorType::new(x.ty.dtype, [axes::product(outer)?, axes::product(inner)?])])
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        vec![("axis", AttributeValue::Int(self.axis))]
    }

    view!();
}

/// Removes dimensions of size 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Squeeze {
    /// Which, in models before opset 13; later ones give them as input 1. All when neither does.
    pub axes: Option<Vec<i64>>,
}

impl Op for Squeeze {
    fn op_type(&self) -> &'static str {
        "Squeeze"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "data")?;
        let given = match &self.axes {
            Some(axes) => Some(axes.clone()),
            None => inputs.integers(1, "axes")?,
        };
        let keep: Vec<usize> = match given {
            None => x.shape().iter().copied().filter(|&d| d != 1).collect(),
            Some(given) => {
                let list = axes::axes(&given, x.ty.rank())?;
                if let Some(&axis) = list.iter().find(|&&a| x.shape()[a] != 1) {
                    return Err(OpError::invalid(format!(
                        "axis {axis} of {:?} is not of size 1",
                        x.shape()
                    )));
                }
                let kept = x.shape().iter().enumerate().filter(|(i, _)| !list.contains(i));
                kept.map(|(_, &d)| d).collect()
            }
        };
        Ok(vec![TensorType::new(x.ty.dtype, keep)])
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        axes_value(self.axes.as_ref())
    }

    view!();
}

/// Inserts dimensions of size 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unsqueeze {
    /// Where, in the output, in models before opset 13; later ones give them as input 1.
    pub axes: Option<Vec<i64>>,
}

impl Op for Unsqueeze {
    fn op_type(&self) -> &'static str {
        "Unsqueeze"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "data")?;
        let given = match &self.axes {
            Some(axes) => axes.clone(),
            None => inputs
                .integers(1, "axes")?
                .ok_or_else(|| OpError::invalid("axes are given neither by attribute nor input"))?,
        };
        let rank = x.ty.rank() + given.len();
        let list = axes::axes(&given, rank)?;
        let mut dims = x.shape().iter();
        let shape: Vec<usize> = (0..rank)
            .map(|i| if list.contains(&i) { 1 } else { dims.next().copied().unwrap_or(1) })
            .collect();
        Ok(vec![TensorType::new(x.ty.dtype, shape)])
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        axes_value(self.axes.as_ref())
    }

    view!();
}

/// y = x.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Identity;

impl Op for Identity {
    fn op_type(&self) -> &'static str {
        "Identity"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        Ok(vec![inputs.required(0, "input")?.ty.clone()])
    }

    fn expand(&self, inputs: &[Option<Operand>]) -> Option<Expansion> {
        inputs.optional(0).map(|_| Expansion::identity(0))
    }

    view!();
}

/// Dropout at inference: y = x, and a mask of ones.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dropout {
    /// Opset of the model, when the node has a mask output: it is boolean from opset 10 on.
    pub mask: Option<u32>,
}

impl Dropout {
    /// Whether the inputs ask for training, which drops elements at random.
    fn trains(inputs: &[Option<Operand>]) -> Result<bool, OpError> {
        let Some(training) = inputs.optional(2) else { return Ok(false) };
        let Some(training) = &training.constant else {
            return Err(OpError::unsupported("training_mode given at run time (use a constant)"));
        };
        let ratio = inputs.optional(1).and_then(|r| r.constant.as_ref());
        let ratio_is_zero = ratio.is_some_and(|r| r.bytes().iter().all(|&b| b == 0));
        Ok(training.bytes().iter().any(|&b| b != 0) && !ratio_is_zero)
    }
}

impl Op for Dropout {
    fn op_type(&self) -> &'static str {
        "Dropout"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "data")?;
        if Dropout::trains(inputs)? {
            return Err(OpError::unsupported(
                "training_mode is true (export the model for inference)",
            ));
        }
        let mut types = vec![x.ty.clone()];
        if let Some(opset) = self.mask {
            let dtype = if opset >= 10 { DType::Bool } else { x.ty.dtype };
            types.push(TensorType::new(dtype, x.shape()));
        }
        Ok(types)
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let one: &'static [u8] = match x.outputs.get(1).map(|t| t.dtype) {
            Some(DType::F32) => &[0, 0, 0x80, 0x3f],
            Some(DType::F16) => &[0, 0x3c],
            Some(DType::F64) => &[0, 0, 0, 0, 0, 0, 0xf0, 0x3f],
            _ => &[1],
        };
        Ok(kernel(move |io, pool| {
            runs::copy(io.input(0).bytes, io.outputs[0].bytes, pool);
            if let Some(mask) = io.outputs.get_mut(1) {
                for element in mask.bytes.chunks_exact_mut(one.len()) {
                    element.copy_from_slice(one);
                }
            }
            Ok(())
        }))
    }

    fn expand(&self, inputs: &[Option<Operand>]) -> Option<Expansion> {
        let plain = self.mask.is_none() && inputs.optional(0).is_some();
        (plain && Dropout::trains(inputs) == Ok(false)).then(|| Expansion::identity(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(op: &dyn Op, x: &[usize], values: Option<&[i64]>) -> Result<Vec<usize>, OpError> {
        let mut inputs = vec![Some(Operand::dynamic(TensorType::f32(x)))];
        inputs.extend(values.map(|v| Some(Operand::constant(Arc::new(integers(v))))));
        op.infer(&inputs).map(|mut t| t.remove(0).shape)
    }

    #[test]
    fn reshape_resolves_zero_and_minus_one() {
        let plain = Reshape::default();
        assert_eq!(shape(&plain, &[2, 3, 4], Some(&[0, -1])), Ok(vec![2, 12]));
        assert_eq!(shape(&plain, &[1], Some(&[])), Ok(vec![]));
        assert_eq!(shape(&plain, &[0, 3], Some(&[3, 0])).ok(), None);
        let zero = Reshape { allow_zero: true };
        assert_eq!(shape(&zero, &[0, 3], Some(&[3, 0])), Ok(vec![3, 0]));
        assert!(shape(&zero, &[0, 3], Some(&[-1, 0])).is_err());
        for wrong in [&[5, -1][..], &[-1, -1], &[-2, 12], &[24, 2], &[0, 0, 0, 0], &[i64::MAX, 9]] {
            assert!(shape(&plain, &[2, 3, 4], Some(wrong)).is_err(), "{wrong:?}");
        }
        let dynamic = [
            Some(Operand::dynamic(TensorType::f32([4]))),
            Some(Operand::dynamic(TensorType::new(DType::I64, [2]))),
        ];
        assert_eq!(plain.infer(&dynamic), Err(OpError::DataDependent { input: 1 }));
    }

    #[test]
    fn flatten_squeeze_unsqueeze() {
        assert_eq!(shape(&Flatten { axis: 1 }, &[2, 3, 4], None), Ok(vec![2, 12]));
        assert_eq!(shape(&Flatten { axis: 0 }, &[2, 3], None), Ok(vec![1, 6]));
        assert_eq!(shape(&Flatten { axis: 2 }, &[2, 3], None), Ok(vec![6, 1]));
        assert!(shape(&Flatten { axis: 3 }, &[2, 3], None).is_err());
        let squeeze = Squeeze::default();
        assert_eq!(shape(&squeeze, &[1, 3, 1], None), Ok(vec![3]));
        assert_eq!(shape(&squeeze, &[1, 3, 1], Some(&[-1])), Ok(vec![1, 3]));
        assert!(shape(&squeeze, &[1, 3, 1], Some(&[1])).is_err());
        assert_eq!(shape(&Squeeze { axes: Some(vec![0]) }, &[1, 3], None), Ok(vec![3]));
        let unsqueeze = Unsqueeze::default();
        assert_eq!(shape(&unsqueeze, &[3, 5], Some(&[0, -1])), Ok(vec![1, 3, 5, 1]));
        assert!(shape(&unsqueeze, &[3, 5], Some(&[0, 0])).is_err());
        assert!(shape(&unsqueeze, &[3, 5], None).is_err());
    }
}
