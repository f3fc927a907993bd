//! FusedLayers: operators one after the other, of which the CPU computes a slice through all of
//! them before the next slice, so that what lies between them never leaves the cache; a chain of
//! dispatches on the GPU. (Alwani et al., "Fused-layer CNN accelerators", MICRO 2016.)

mod kernel;
mod links;
mod pooled;
mod text;

use std::{ops::Range, sync::Arc};

use sparoa_kernels::Arithmetic;

use super::{
    AttributeValue, Attributes, CpuKernel, Example, GpuCaps, GpuKernel, KernelClass, Op, OpError,
    OpSpec, Operand, Operands, Part, PartInput, Variant, floats, gpu, packed_kernel,
};
use crate::tensor::TensorType;
use links::{Feed, Link};

pub(super) const SPECS: &[OpSpec] = &[OpSpec {
    name: "FusedLayers",
    domain: "ai.sparoa",
    since: 1,
    inputs: (1, 64),
    outputs: (1, 1),
    parse: |a| Ok(Arc::new(FusedLayers::parse(a)?)),
    examples,
}];

/// Where a layer's input comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// It has none.
    Absent,
    /// This input of the whole.
    Input(usize),
    /// The layer before it, read with this shape.
    Previous(Vec<usize>),
}

/// One of the operators. It has one output.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The operator.
    pub op: Arc<dyn Op>,
    /// Its inputs.
    pub inputs: Vec<Source>,
}

/// See the module. Only the first layers' run-time inputs and constants come from outside, and
/// every layer but the first reads the one before it, once.
#[derive(Clone, Debug)]
pub struct FusedLayers {
    /// In order; at least one.
    pub layers: Vec<Layer>,
}

impl FusedLayers {
    fn parse(attributes: &Attributes) -> Result<FusedLayers, OpError> {
        let layers = attributes.strings("layers")?.unwrap_or_default();
        if layers.is_empty() {
            return Err(OpError::invalid("attribute layers is empty"));
        }
        let layers = layers.iter().map(|layer| text::parse(layer)).collect::<Result<_, _>>()?;
        Ok(FusedLayers { layers })
    }

    /// The layers with their inputs and outputs.
    fn links(&self, inputs: &[Option<Operand>]) -> Result<Vec<Link>, OpError> {
        let mut links: Vec<Link> = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let before = links.last().map(|link| &link.ty);
            let feed = |source: &Source| match source {
                Source::Absent => Ok(Feed::Absent),
                Source::Input(index) => match inputs.get(*index) {
                    Some(Some(operand)) => Ok(Feed::whole(*index, operand)),
                    Some(None) => Ok(Feed::Absent),
                    None => Err(OpError::invalid(format!("input {index} is missing"))),
                },
                Source::Previous(shape) => match before {
                    Some(ty) if ty.len() == shape.iter().product::<usize>() => {
                        let ty = TensorType::new(ty.dtype, shape.clone());
                        Ok(Feed::Previous { from: 0, ty })
                    }
                    _ => Err(OpError::invalid(format!(
                        "a layer reads {shape:?} of the one before it, which has {before:?}"
                    ))),
                },
            };
            let feeds = layer.inputs.iter().map(feed).collect::<Result<Vec<_>, _>>()?;
            links.push(Link::new(layer.op.clone(), feeds)?);
        }
        Ok(links)
    }

    fn links_of(&self, x: &Operands<'_>) -> Option<Vec<Link>> {
        self.links(x.inputs).ok()
    }

    /// The same with other operators.
    fn map(&self, f: impl Fn(&dyn Op) -> Option<Arc<dyn Op>>) -> Option<Arc<dyn Op>> {
        let mut changed = self.clone();
        let mut any = false;
        for layer in &mut changed.layers {
            if let Some(op) = f(&*layer.op) {
                layer.op = op;
                any = true;
            }
        }
        any.then(|| Arc::new(changed) as Arc<dyn Op>)
    }
}

impl Op for FusedLayers {
    fn op_type(&self) -> &'static str {
        "FusedLayers"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let last = self.links(inputs)?.pop();
        Ok(last.into_iter().map(|link| link.ty).collect())
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        let links = self.links_of(x).unwrap_or_default();
        links.iter().map(|link| link.with_operands(|x| link.op.flops(x))).sum()
    }

    /// Those of the layers one by one: GPUs keep nothing between them.
    fn bytes(&self, x: &Operands<'_>) -> u64 {
        let links = self.links_of(x).unwrap_or_default();
        links.iter().map(|link| link.with_operands(|x| link.op.bytes(x))).sum()
    }

    fn products(&self, x: &Operands<'_>) -> Vec<(KernelClass, u64)> {
        let links = self.links_of(x).unwrap_or_default();
        links.iter().flat_map(|link| link.with_operands(|x| link.op.products(x))).collect()
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let links = self.links(x.inputs)?;
        pooled::or_else(&links, x.output(0), || {
            let kernel = kernel::Slices::new(&links, kernel::SLICE_BYTES)?;
            let method = if kernel.count() > 1 { "slices" } else { "layer by layer" };
            let held: Vec<usize> = (0..x.inputs.len()).filter(|i| kernel.holds(*i)).collect();
            Ok(packed_kernel(method, held, Box::new(kernel)))
        })
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        let links = self.links_of(x)?;
        let count = links.len();
        let stages = links.iter().enumerate().map(|(i, link)| {
            let source = |feed: &Feed| match feed {
                Feed::Absent => None,
                Feed::Outer { index, .. } => Some(gpu::StageInput::Input(*index)),
                Feed::Previous { .. } => Some(gpu::StageInput::Previous),
            };
            let inputs: Vec<_> = link.feeds.iter().map(source).collect();
            let caps = gpu::stage_caps(caps, &inputs, i + 1 == count);
            let kernel = link.with_operands(|x| link.op.gpu(x, &caps))?;
            Some(gpu::Stage { kernel, inputs, bytes: link.ty.bytes() })
        });
        Some(gpu::sequence(stages.collect::<Option<_>>()?, caps))
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        let links = self.links_of(x)?;
        let (axis, step) = links::cuts(&links)?;
        // The first step stands for all of them.
        links::part(&links, 0..step).map(|_| axis)
    }

    fn split_unit(&self, x: &Operands<'_>) -> usize {
        self.links_of(x).and_then(|links| links::cuts(&links)).map_or(1, |(_, unit)| unit)
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let parts = links::part(&self.links_of(x)?, range)?;
        let mut inputs = vec![None; x.inputs.len()];
        let mut layers = Vec::with_capacity(parts.len());
        let mut before = 0;
        for link in &parts {
            let mut sources = Vec::with_capacity(link.feeds.len());
            for feed in &link.feeds {
                sources.push(match feed {
                    Feed::Absent => Source::Absent,
                    Feed::Outer { index, cut, .. } => {
                        let wanted = match cut {
                            None => PartInput::Whole,
                            Some((axis, range)) => {
                                PartInput::Range { axis: *axis, range: range.clone() }
                            }
                        };
                        // One input that several layers read must be cut alike for all of them.
                        if inputs[*index].get_or_insert_with(|| wanted.clone()) != &wanted {
                            return None;
                        }
                        Source::Input(*index)
                    }
                    // A layer may not make more than the next one reads.
                    Feed::Previous { from: 0, ty } if ty.len() == before => {
                        Source::Previous(ty.shape.clone())
                    }
                    Feed::Previous { .. } => return None,
                });
            }
            before = link.ty.len();
            layers.push(Layer { op: link.op.clone(), inputs: sources });
        }
        let inputs = inputs.into_iter().map(|input| input.unwrap_or(PartInput::Whole)).collect();
        Some(Part { op: Arc::new(FusedLayers { layers }), inputs })
    }

    fn with_arithmetic(&self, arithmetic: Arithmetic) -> Option<Arc<dyn Op>> {
        self.map(|op| op.with_arithmetic(arithmetic))
    }

    fn product_depth(&self) -> usize {
        self.layers.iter().map(|layer| layer.op.product_depth()).sum()
    }

    fn with_variant(&self, variant: Variant) -> Option<Arc<dyn Op>> {
        self.map(|op| op.with_variant(variant))
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        vec![("layers", AttributeValue::Strings(self.layers.iter().map(text::write).collect()))]
    }

    fn domain(&self) -> &'static str {
        "ai.sparoa"
    }
}

fn examples() -> Vec<Example> {
    let layers = |list: &[&str]| {
        AttributeValue::Strings(list.iter().map(|layer| (*layer).to_owned()).collect())
    };
    vec![
        Example::new("a normalisation, two products and a residual")
            .attribute(
                "layers",
                layers(&[
                    "LayerNormalization(0,1,2) axis=i:-1 epsilon=f:0.00001",
                    "ai.sparoa.Linear(@2x6x4,3,4) transB=i:0 activation=s:Relu",
                    "ai.sparoa.Linear(@2x6x8,5,,0) transB=i:0 residual=s:after_activation",
                ]),
            )
            .input(floats([2, 6, 4], 1))
            .constant(floats([4], 2))
            .constant(floats([4], 3))
            .constant(floats([4, 8], 4))
            .constant(floats([8], 5))
            .constant(floats([8, 4], 6)),
        Example::new("a convolution and the pooling of its result")
            .attribute(
                "layers",
                layers(&[
                    "ai.sparoa.Conv(0,1,2) kernel_shape=is:3,3 pads=is:1,1,1,1 strides=is:2,2 layout=s:NHWC \
                     activation=s:Relu",
                    "ai.sparoa.MaxPool(@2x6x5x4) kernel_shape=is:3,3 pads=is:1,1,1,1 \
                     strides=is:2,2 layout=s:NHWC",
                ]),
            )
            .input(floats([2, 12, 10, 3], 1))
            .constant(floats([4, 3, 3, 3], 2))
            .constant(floats([4], 3)),
    ]
}

#[cfg(test)]
mod tests;
