//! What can be placed where: per node, whether the accelerator runs it and how it splits.

use std::{ops::Range, sync::Arc};

use super::PartRange;
use crate::{
    backend::Accelerator,
    ir::{Graph, Node},
    ops::{
        Op, Operand, Operands, PartInput,
        quantize::{DynamicQuantizeLinear, QuantizeLinear},
    },
    tensor::{Tensor, TensorType},
};

/// Legal places of a graph's nodes on one machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Support {
    /// By node index: whether the GPU runs the node, or why not.
    pub gpu: Vec<Result<(), String>>,
    /// By node index: how the node splits between the processors, if it does.
    pub split: Vec<Option<SplitAxis>>,
    /// By node index: the node only renames its input's bytes and runs nowhere.
    pub view: Vec<bool>,
}

/// How a node may be divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitAxis {
    /// Axis of the output.
    pub axis: usize,
    /// Its length.
    pub extent: usize,
    /// Both parts are multiples of this.
    pub unit: usize,
}

impl SplitAxis {
    /// How much of the axis the GPU gets for a share; 0 or `extent` when the share rounds to
    /// nothing or everything.
    pub fn gpu_extent(&self, share: f32) -> usize {
        let units = (f64::from(share) * (self.extent / self.unit) as f64).round();
        (units.max(0.0) as usize * self.unit).min(self.extent)
    }
}

impl Support {
    /// Asks the operators and the accelerator; without an accelerator the CPU runs everything.
    pub fn of(graph: &Graph, accelerator: Option<&dyn Accelerator>) -> Support {
        let mut support = Support { gpu: Vec::new(), split: Vec::new(), view: Vec::new() };
        let rounded = rounded_later(graph);
        for (node, rounded) in graph.nodes.iter().zip(rounded) {
            let view = is_view(graph, node);
            let (gpu, split) = match accelerator {
                _ if view => (Ok(()), None),
                None => (Err("this machine has no GPU".to_owned()), None),
                Some(_) if rounded => {
                    (Err("its result is quantised later, exactly as on the CPU".to_owned()), None)
                }
                Some(accelerator) => graph.with_operands(node, |x| probe(node, x, accelerator)),
            };
            support.gpu.push(gpu);
            support.split.push(split);
            support.view.push(view);
        }
        support
    }

    /// By node index: whether the GPU runs the node.
    pub fn gpu_runs(&self) -> Vec<bool> {
        self.gpu.iter().map(Result::is_ok).collect()
    }
}

/// By node index: whether floats that the node makes are rounded to integers later. Two processors
/// sum in different orders; a difference in the last bit would flip a rounding, by a whole step.
/// So one processor computes all floats on the way to a quantisation. Integers on the way are
/// exact, and end it.
fn rounded_later(graph: &Graph) -> Vec<bool> {
    let mut wanted = vec![false; graph.values.len()];
    let mut result = vec![false; graph.nodes.len()];
    for (node, result) in graph.nodes.iter().zip(&mut result).rev() {
        let quantizes = node.op.is::<QuantizeLinear>() || node.op.is::<DynamicQuantizeLinear>();
        *result = node.outputs.iter().flatten().any(|v| wanted[v.index()]);
        if quantizes || *result {
            for input in node.inputs.iter().flatten() {
                wanted[input.index()] |= graph.value(*input).ty.dtype.is_float();
            }
        }
    }
    result
}

/// Whether a node's output is the bytes of its first input. A view that also has to produce
/// something else is an ordinary node.
pub(super) fn is_view(graph: &Graph, node: &Node) -> bool {
    let [Some(output), rest @ ..] = &node.outputs[..] else { return false };
    let Some(Some(input)) = node.inputs.first() else { return false };
    node.op.is_view()
        && rest.iter().all(Option::is_none)
        && graph.value(*input).ty.bytes() == graph.value(*output).ty.bytes()
        && graph.value(*input).ty.dtype.size() == graph.value(*output).ty.dtype.size()
}

fn probe(
    node: &Node,
    x: &Operands<'_>,
    accelerator: &dyn Accelerator,
) -> (Result<(), String>, Option<SplitAxis>) {
    let runs = runs_on(node.op.as_ref(), x, accelerator);
    if runs.is_err() || node.outputs.len() != 1 {
        return (runs, None);
    }
    let Some(axis) = node.op.split_axis(x) else { return (runs, None) };
    let Some(&extent) = x.output(0).shape.get(axis) else { return (runs, None) };
    let axis = SplitAxis { axis, extent, unit: node.op.split_unit(x) };
    let half = axis.gpu_extent(0.5);
    if extent % axis.unit != 0 || half == 0 || half == extent {
        return (runs, None);
    }
    let half = PartRange { axis: axis.axis, range: 0..half, extent };
    let parts = part_of(node.op.as_ref(), x, &half).is_some_and(|part| {
        let inputs: Vec<Option<Operand>> = part.operands(x);
        let operands = Operands { inputs: &inputs, outputs: std::slice::from_ref(&part.ty) };
        runs_on(part.op.as_ref(), &operands, accelerator).is_ok()
    });
    (runs, parts.then_some(axis))
}

/// Whether the accelerator runs the operator, and device memory can hold what it reads and
/// writes.
fn runs_on(op: &dyn Op, x: &Operands<'_>, accelerator: &dyn Accelerator) -> Result<(), String> {
    let run_time = x.inputs.iter().flatten().filter(|o| o.constant.is_none()).map(|o| &o.ty);
    for ty in run_time.clone().chain(x.outputs) {
        if ty.dtype.size() != 4 {
            return Err(format!("{} tensors stay on the CPU", ty.dtype));
        }
        if ty.is_empty() {
            return Err("an operand is empty".to_owned());
        }
    }
    if run_time.count() == 0 {
        return Err("it reads nothing at run time".to_owned());
    }
    accelerator.supports(op, x)
}

/// A part of a node with its concrete operand types.
pub(super) struct TypedPart {
    pub op: Arc<dyn Op>,
    /// Per input of the node: the type of what the part reads, and the axis and range where that
    /// is not all of it.
    pub inputs: Vec<Option<PartOperand>>,
    /// Type of the output.
    pub ty: TensorType,
}

pub(super) struct PartOperand {
    pub ty: TensorType,
    pub slice: Option<(usize, Range<usize>)>,
}

impl TypedPart {
    /// The part's inputs as its operator sees them, constants cut to size.
    fn operands(&self, x: &Operands<'_>) -> Vec<Option<Operand>> {
        let cut = |i: usize, p: &PartOperand| {
            let constant = x.constant(i).map(|c| match &p.slice {
                None => c.clone(),
                Some((axis, range)) => Arc::new(slice_tensor(c, *axis, range.clone())),
            });
            Operand { ty: p.ty.clone(), constant }
        };
        self.inputs.iter().enumerate().map(|(i, p)| p.as_ref().map(|p| cut(i, p))).collect()
    }
}

/// Asks the operator for a part and works out the types. `None` when the operator declines, or
/// wants a range that is not one contiguous run of bytes.
pub(super) fn part_of(op: &dyn Op, x: &Operands<'_>, range: &PartRange) -> Option<TypedPart> {
    let contiguous = |shape: &[usize], axis: usize| shape[..axis].iter().all(|&d| d == 1);
    let part = op.split(x, range.range.clone())?;
    let mut ty = x.output(0).clone();
    if !contiguous(&ty.shape, range.axis) || part.inputs.len() > x.inputs.len() {
        return None;
    }
    ty.shape[range.axis] = range.range.len();
    let mut inputs = Vec::with_capacity(x.inputs.len());
    for (i, operand) in x.inputs.iter().enumerate() {
        let wanted = part.inputs.get(i).unwrap_or(&PartInput::Whole);
        inputs.push(match (operand, wanted) {
            (None, _) => None,
            (Some(operand), PartInput::Whole) => {
                Some(PartOperand { ty: operand.ty.clone(), slice: None })
            }
            (Some(operand), PartInput::Range { axis, range }) => {
                let extent = *operand.ty.shape.get(*axis)?;
                if range.end > extent || range.start >= range.end {
                    return None;
                }
                if operand.constant.is_none() && !contiguous(&operand.ty.shape, *axis) {
                    return None;
                }
                let mut ty = operand.ty.clone();
                ty.shape[*axis] = range.len();
                Some(PartOperand { ty, slice: Some((*axis, range.clone())) })
            }
        });
    }
    Some(TypedPart { op: part.op, inputs, ty })
}

/// Per input of a node that splits so: the share of it that a part reads beyond the part's own
/// share of the work, or `None` where a part reads all of it.
pub fn part_reads(op: &dyn Op, x: &Operands<'_>, axis: SplitAxis) -> Option<Vec<Option<f32>>> {
    let half = axis.gpu_extent(0.5);
    let part = part_of(op, x, &PartRange { axis: axis.axis, range: 0..half, extent: axis.extent })?;
    let own = half as f32 / axis.extent as f32;
    let beyond = |operand: &Option<PartOperand>, whole: &Option<Operand>| {
        let (axis, range) = operand.as_ref()?.slice.as_ref()?;
        let extent = whole.as_ref()?.ty.shape[*axis];
        Some((range.end as f32 / extent as f32 - own).max(0.0))
    };
    Some(part.inputs.iter().zip(x.inputs).map(|(p, whole)| beyond(p, whole)).collect())
}

/// A range of a tensor along one axis, copied.
pub(crate) fn slice_tensor(tensor: &Tensor, axis: usize, range: Range<usize>) -> Tensor {
    let mut ty = tensor.ty().clone();
    let extent = ty.shape[axis];
    let inner: usize = ty.shape[axis + 1..].iter().product::<usize>() * ty.dtype.size();
    ty.shape[axis] = range.len();
    let mut out = Tensor::zeros(ty);
    let width = range.len() * inner;
    if width > 0 {
        let rows = tensor.bytes().chunks_exact(extent * inner);
        for (to, from) in out.bytes_mut().chunks_exact_mut(width).zip(rows) {
            to.copy_from_slice(&from[range.start * inner..][..width]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_inner_and_outer_axes() {
        let t = Tensor::from_slice([2, 3], &[1f32, 2., 3., 4., 5., 6.]);
        assert_eq!(slice_tensor(&t, 0, 1..2), Tensor::from_slice([1, 3], &[4f32, 5., 6.]));
        assert_eq!(slice_tensor(&t, 1, 1..3), Tensor::from_slice([2, 2], &[2f32, 3., 5., 6.]));
    }

    #[test]
    fn floats_on_the_way_to_a_quantisation_are_known() {
        use crate::ir::{Dim, ModelBuilder, Shapes, specialize};
        use crate::ops::{Attributes, find};
        use crate::tensor::DType;
        let op = |name: &str| {
            let spec = find("", name).unwrap();
            (spec.parse)(&Attributes::new(20, 1, Vec::new())).unwrap()
        };
        let mut b = ModelBuilder::new("m");
        let x = b.input("x", DType::F32, vec![Dim::Fixed(4)]);
        let scale = b.constant("scale", Tensor::scalar(0.5f32));
        let first = b.node("first", op("Neg"), &[x]);
        let beside = b.node("beside", op("Exp"), &[first]);
        let second = b.node("second", op("Tanh"), &[first]);
        let bytes = b.node("quantize", op("QuantizeLinear"), &[second, scale]);
        let floats = b.node("dequantize", op("DequantizeLinear"), &[bytes, scale]);
        let after = b.node("after", op("Neg"), &[floats]);
        b.output(beside);
        b.output(after);
        let graph = specialize(&b.finish(), &Shapes::new()).unwrap().graph;
        let rounded: Vec<&str> = graph
            .nodes
            .iter()
            .zip(rounded_later(&graph))
            .filter_map(|(node, rounded)| rounded.then_some(node.name.as_str()))
            .collect();
        assert_eq!(rounded, ["first", "second"]);
    }

    #[test]
    fn shares_round_to_units() {
        let axis = SplitAxis { axis: 0, extent: 8, unit: 1 };
        assert_eq!(axis.gpu_extent(0.5), 4);
        assert_eq!(axis.gpu_extent(0.01), 0);
        assert_eq!(axis.gpu_extent(0.99), 8);
        let pairs = SplitAxis { unit: 2, ..axis };
        assert_eq!(pairs.gpu_extent(0.4), 4);
        assert_eq!(pairs.gpu_extent(0.1), 0);
    }
}
