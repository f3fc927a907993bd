//! InstanceNormalization and GroupNormalization: statistics of each image's groups of channels.

use std::{ops::Range, sync::Arc};

use sparoa_kernels::norm::{group_norm, layer_norm};

use super::check_len;
use crate::{
    ops::{
        AttributeValue, CpuKernel, Example, InputsExt, Op, OpError, OpSpec, Operand, Operands,
        Part, PartInput, axes,
        conv::{layout, layout_attribute, same_dtype},
        floats, kernel,
        window::Layout,
    },
    tensor::{DType, TensorType},
};

pub(super) const INSTANCE: OpSpec = OpSpec {
    name: "InstanceNormalization",
    domain: "",
    since: 1,
    inputs: (3, 3),
    outputs: (1, 1),
    parse: |a| {
        Ok(Arc::new(GroupNorm {
            groups: None,
            epsilon: a.float_or("epsilon", 1e-5)?,
            per_group: false,
            layout: layout(a)?,
        }))
    },
    examples: || {
        vec![
            Example::new("two images")
                .input(floats([2, 3, 4, 5], 1))
                .constant(floats([3], 2))
                .constant(floats([3], 3)),
        ]
    },
};

pub(super) const GROUP: OpSpec = OpSpec {
    name: "GroupNormalization",
    since: 18,
    parse: |a| {
        a.ignore(&["stash_type"]);
        let groups = a.int("num_groups")?.unwrap_or(0);
        let groups = usize::try_from(groups).ok().filter(|&g| g > 0).ok_or_else(|| {
            OpError::invalid(format!("attribute num_groups is {groups}, must be 1 or more"))
        })?;
        // Opset 18 has a scale and shift per group, 21 and later per channel.
        let per_group = a.flag("per_group", (18..21).contains(&a.opset))?;
        let epsilon = a.float_or("epsilon", 1e-5)?;
        Ok(Arc::new(GroupNorm { groups: Some(groups), epsilon, per_group, layout: layout(a)? }))
    },
    examples: || {
        vec![
            Example::new("two groups")
                .attribute("num_groups", 2i64)
                .attribute("epsilon", 0.01f32)
                .input(floats([2, 4, 3, 3], 1))
                .constant(floats([4], 2))
                .constant(floats([4], 3)),
            Example::new("a scale per group")
                .opset(18)
                .attribute("num_groups", 2i64)
                .input(floats([1, 6, 5], 1))
                .constant(floats([2], 2))
                .constant(floats([2], 3)),
        ]
    },
    ..INSTANCE
};

/// GroupNormalization, channels last.
pub(super) const GROUP_LAST: OpSpec = OpSpec {
    domain: "ai.sparoa",
    since: 1,
    examples: || {
        vec![
            Example::new("channels last")
                .attribute("num_groups", 2i64)
                .attribute("layout", "NHWC")
                .input(floats([2, 3, 3, 4], 1))
                .constant(floats([4], 2))
                .constant(floats([4], 3)),
        ]
    },
    ..GROUP
};

/// InstanceNormalization, channels last.
pub(super) const INSTANCE_LAST: OpSpec = OpSpec {
    domain: "ai.sparoa",
    examples: || {
        vec![
            Example::new("channels last")
                .attribute("layout", "NHWC")
                .input(floats([1, 3, 2, 4], 1))
                .constant(floats([4], 2))
                .constant(floats([4], 3)),
        ]
    },
    ..INSTANCE
};

/// Normalisation of each image's groups of channels. Inputs: x, scale, shift. Output: as x.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupNorm {
    /// Number of groups; `None` for a group per channel.
    pub groups: Option<usize>,
    /// Added to the variance.
    pub epsilon: f32,
    /// Scale and shift have a value per group instead of per channel.
    pub per_group: bool,
    /// Order of the dimensions.
    pub layout: Layout,
}

impl GroupNorm {
    /// Batch, channels, pixels and groups.
    fn sizes(&self, shape: &[usize]) -> Result<[usize; 4], OpError> {
        if shape.len() < 2 {
            return Err(OpError::invalid(format!(
                "the input has shape {shape:?}, it needs batch and channels"
            )));
        }
        let channels = shape[self.layout.channel_axis(shape.len())];
        let groups = self.groups.unwrap_or(channels.max(1));
        if !channels.is_multiple_of(groups) {
            return Err(OpError::invalid(format!(
                "attribute num_groups is {groups}, which does not divide {channels} channels"
            )));
        }
        Ok([shape[0], channels, axes::product(self.layout.spatial(shape))?, groups])
    }
}

impl Op for GroupNorm {
    fn op_type(&self) -> &'static str {
        if self.groups.is_none() { "InstanceNormalization" } else { "GroupNormalization" }
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let x = inputs.required(0, "X")?;
        let [_, channels, _, groups] = self.sizes(x.shape())?;
        for (i, name) in [(1, "scale"), (2, "bias")] {
            let parameter = inputs.required(i, name)?;
            same_dtype(x, parameter, name)?;
            check_len(parameter, if self.per_group { groups } else { channels }, name)?;
        }
        Ok(vec![x.ty.clone()])
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        8 * x.output(0).len() as u64
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let dtype = x.output(0).dtype;
        if dtype != DType::F32 {
            return Err(OpError::dtype(dtype, &[DType::F32]));
        }
        let [n, channels, pixels, groups] = self.sizes(x.input(0).shape())?;
        let (epsilon, per_group, layout) = (self.epsilon, self.per_group, self.layout);
        Ok(kernel(move |io, pool| {
            let x = io.input(0).slice::<f32>();
            if x.is_empty() {
                return Ok(());
            }
            let (scale, shift) = (io.input(1).slice::<f32>(), io.input(2).slice::<f32>());
            let y = io.outputs[0].slice_mut::<f32>();
            let per_channel = (!per_group).then_some(());
            let size = channels / groups;
            match layout {
                Layout::Nhwc => {
                    let (gamma, beta) = (per_channel.map(|()| scale), per_channel.map(|()| shift));
                    group_norm(n, pixels, channels, groups, gamma, beta, epsilon, x, y, pool);
                    if per_group {
                        pool.run_parts(y, channels, &|_, y| {
                            for (c, y) in y.iter_mut().enumerate() {
                                *y = *y * scale[c / size] + shift[c / size];
                            }
                        });
                    }
                }
                Layout::Nchw => {
                    // A group is contiguous: a row without parameters of its own.
                    let (rows, len) = (n * groups, size * pixels);
                    layer_norm(rows, len, None, None, epsilon, x, y, pool);
                    pool.run_parts(y, pixels, &|plane, y| {
                        let c = plane % channels;
                        let at = if per_group { c / size } else { c };
                        for y in y {
                            *y = *y * scale[at] + shift[at];
                        }
                    });
                }
            }
            Ok(())
        }))
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        (x.output(0).shape[0] > 1).then_some(0)
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let axis = self.split_axis(x)?;
        let images = PartInput::Range { axis, range };
        let inputs = vec![images, PartInput::Whole, PartInput::Whole];
        Some(Part { op: Arc::new(self.clone()), inputs })
    }

    fn channels_last(&self) -> Option<Arc<dyn Op>> {
        (self.layout == Layout::Nchw)
            .then(|| Arc::new(GroupNorm { layout: Layout::Nhwc, ..self.clone() }) as Arc<dyn Op>)
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mut list = vec![("epsilon", self.epsilon.into())];
        if let Some(groups) = self.groups {
            list.push(("num_groups", i64::try_from(groups).unwrap_or(i64::MAX).into()));
        }
        // In the standard domain the opset tells.
        if self.per_group && self.layout == Layout::Nhwc {
            list.push(("per_group", 1i64.into()));
        }
        list.extend(layout_attribute(self.layout));
        list
    }

    fn domain(&self) -> &'static str {
        if self.layout == Layout::Nhwc { "ai.sparoa" } else { "" }
    }
}
