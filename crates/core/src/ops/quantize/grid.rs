//! Which of several scales an element has.

use crate::ops::{AttributeValue, Attributes, OpError, axes};

/// The attributes `axis` and `block_size`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Axis along which scales vary, if there are several; negative counts from the end.
    pub axis: i64,
    /// Elements along the axis that share a scale; 0 for one scale per index.
    pub block: usize,
}

/// A [`Grid`] on tensors of known shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    /// The axis along which scales vary; `None` for one scale.
    pub axis: Option<usize>,
    /// Length of the axis.
    pub len: usize,
    /// Elements of the axes after it.
    pub inner: usize,
    /// Indices that share a scale; 0 for one scale per index and none along other axes.
    pub block: usize,
}

impl Grid {
    pub(super) fn parse(attributes: &Attributes) -> Result<Grid, OpError> {
        let block = attributes.int_or("block_size", 0)?;
        Ok(Grid {
            axis: attributes.int_or("axis", 1)?,
            block: usize::try_from(block).map_err(|_| {
                OpError::invalid(format!("attribute block_size is {block}, must be 0 or more"))
            })?,
        })
    }

    pub(super) fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let mut list = vec![("axis", self.axis.into())];
        if self.block > 0 {
            list.push(("block_size", i64::try_from(self.block).unwrap_or(i64::MAX).into()));
        }
        list
    }

    /// Fits scales of shape `scale` to a tensor of shape `x`.
    pub(super) fn place(&self, x: &[usize], scale: &[usize]) -> Result<Placed, OpError> {
        let count = axes::product(scale)?;
        if count == 1 && self.block == 0 {
            return Ok(Placed { axis: None, len: 1, inner: 1, block: 0 });
        }
        let axis = axes::axis(self.axis, x.len())?;
        let (len, inner) = (x[axis], axes::product(&x[axis + 1..])?);
        let expected: Vec<usize> = if self.block == 0 {
            vec![len]
        } else {
            let mut shape = x.to_vec();
            shape[axis] = len.div_ceil(self.block);
            shape
        };
        // A scale per index is a vector.
        if scale != expected {
            return Err(OpError::invalid(format!(
                "the scale has shape {scale:?}, must have {expected:?} (attributes axis {}, \
                 block_size {})",
                self.axis, self.block
            )));
        }
        Ok(Placed { axis: Some(axis), len, inner, block: self.block })
    }
}

impl Placed {
    pub(super) fn blocked(&self) -> bool {
        self.block > 0
    }

    /// Index of the scale of element `at`.
    pub(super) fn parameter(&self, at: usize) -> usize {
        if self.axis.is_none() {
            return 0;
        }
        let along = at / self.inner % self.len;
        if self.block == 0 {
            return along;
        }
        let outer = at / (self.inner * self.len);
        (outer * self.len.div_ceil(self.block) + along / self.block) * self.inner + at % self.inner
    }
}
