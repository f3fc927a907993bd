//! Float operators between DequantizeLinear and QuantizeLinear become integer operators.
//!
//! First the conversions move: an operator that only moves elements (or picks the largest) does so
//! with bytes as well, so dequantisations sink below it and quantisations rise above it, until they
//! stand at the operators that calculate, or meet and vanish. Then each quantisation is merged
//! with the operator before it and the dequantisations before that.
//!
//! Roundings are monotone, so an activation that clamps becomes bounds of the result, exactly.

use std::sync::Arc;

use sparoa_kernels::Activation;

use super::{editor::Editor, fold, pattern};
use crate::{
    ir::{NodeId, ValueId},
    ops::{
        Op,
        conv::{Conv, Layout, ResidualKind},
        gemm::Gemm,
        matmul::MatMul,
        pooling::{GlobalPooling, PoolKind, Pooling},
        quantize::{DequantizeLinear, QuantizeLinear},
        quantized::{IntAdd, IntConv, IntMatMul, IntMean},
    },
    tensor::{DType, Tensor},
};

/// Terms of a sum that cannot leave 32 bits, whatever the bytes are.
const MAX_TERMS: usize = 32_000;

pub(super) fn run(e: &mut Editor) {
    for id in e.ids() {
        if e.get(id).is_some() {
            sink_dequantization(e, id);
        }
    }
    // Weights that were rearranged as floats.
    fold::run_where(e, |op| !op.is::<DequantizeLinear>());
    e.tidy();
    let ids: Vec<NodeId> = e.ids().collect();
    for id in ids.into_iter().rev() {
        if e.get(id).is_some() {
            raise_quantization(e, id);
        }
    }
    e.tidy();
    for id in e.ids() {
        if e.get(id).is_some() && cancel(e, id).is_none() {
            merge(e, id);
        }
    }
}

/// How far a bias may be moved to fit 32 bits, in steps of the result.
const MAX_BIAS_ERROR: f64 = 1.0 / 64.0;

/// Scale and zero point of a tensor with one of each.
#[derive(Clone, Copy, Debug)]
struct Grid {
    scale: ValueId,
    /// Absent: 0 of type u8.
    zero: Option<ValueId>,
}

impl Grid {
    /// The constant scale and zero point of a conversion between f32 and bytes.
    fn of(e: &Editor, id: NodeId) -> Option<Grid> {
        let scale = e.input(id, 1)?;
        let zero = e.input(id, 2);
        let one = |v: ValueId| e.constant(v).is_some_and(|t| t.ty().len() == 1);
        let value = pattern::scalar(e, scale)?;
        let usable = value > 0.0 && value.is_finite() && zero.is_none_or(one);
        usable.then_some(Grid { scale, zero })
    }

    fn scale(&self, e: &Editor) -> Option<f32> {
        pattern::scalar(e, self.scale)
    }

    fn zero(&self, e: &Editor) -> Option<i64> {
        match self.zero {
            None => Some(0),
            Some(zero) => e.constant(zero)?.to_i64s()?.first().copied(),
        }
    }

    fn equals(&self, e: &Editor, other: &Grid) -> bool {
        self.scale(e) == other.scale(e) && self.zero(e) == other.zero(e)
    }

    /// The zero point as an input, made where it is left out.
    fn zero_input(&self, e: &mut Editor, name: &str, dtype: DType) -> ValueId {
        self.zero.unwrap_or_else(|| {
            let zero = match dtype {
                DType::I8 => Tensor::scalar(0i8),
                _ => Tensor::scalar(0u8),
            };
            e.add_constant(format!("{name}/zero_point"), zero)
        })
    }
}

fn is_bytes(e: &Editor, value: ValueId) -> bool {
    matches!(e.ty(value).dtype, DType::I8 | DType::U8)
}

/// A dequantised tensor of bytes with one scale: the bytes, and their grid.
fn dequantized(e: &Editor, value: ValueId) -> Option<(ValueId, Grid)> {
    let id = e.producer(value)?;
    let node = e.node(id);
    let x = e.input(id, 0)?;
    let plain = node.op.is::<DequantizeLinear>() && is_bytes(e, x);
    let grid = Grid::of(e, id).filter(|_| plain && e.ty(value).dtype == DType::F32)?;
    Some((x, grid))
}

/// What a quantisation to bytes with one scale reads, and its grid.
fn quantizes(e: &Editor, id: NodeId) -> Option<(ValueId, Grid)> {
    let x = e.input(id, 0)?;
    let plain = e.get(id)?.op.is::<QuantizeLinear>() && is_bytes(e, e.output(id)?);
    let grid = Grid::of(e, id).filter(|_| plain && e.ty(x).dtype == DType::F32)?;
    Some((x, grid))
}

/// How many of its inputs, from the first on, an operator passes on element by element; the others
/// say how. `None`: it calculates.
fn moved_inputs(e: &Editor, id: NodeId) -> Option<usize> {
    let node = e.get(id)?;
    if node.outputs.len() != 1 {
        return None;
    }
    match node.op.op_type() {
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Transpose" | "Slice" | "Identity"
        | "Expand" | "DepthToSpace" | "SpaceToDepth" => Some(1),
        "Gather" => Some(1),
        "Concat" => Some(node.inputs.len()),
        // Padding never wins; a window of nothing else does not exist.
        "MaxPool" => node.op.downcast::<Pooling>().map(|_| 1),
        _ => None,
    }
}

/// op(dequantised x) becomes dequantised op(x).
fn sink_dequantization(e: &mut Editor, id: NodeId) -> Option<()> {
    let count = moved_inputs(e, id)?;
    let node = e.node(id);
    let (op, name) = (Arc::clone(&node.op), node.name.clone());
    let mut inputs = node.inputs.clone();
    let mut grid: Option<(Grid, DType)> = None;
    for input in inputs.iter_mut().take(count) {
        let (bytes, own) = dequantized(e, (*input)?)?;
        let dtype = e.ty(bytes).dtype;
        let (first, first_dtype) = *grid.get_or_insert((own, dtype));
        if !first.equals(e, &own) || first_dtype != dtype {
            return None;
        }
        *input = Some(bytes);
    }
    let (grid, _) = grid?;
    let source = e.producer(e.input(id, 0)?)?;
    let dequantize = Arc::clone(&e.node(source).op);
    for (old, new) in e.rewrite(id, op, inputs).ok()? {
        let inputs = vec![Some(new), Some(grid.scale), grid.zero];
        let inputs = inputs.into_iter().take(if grid.zero.is_some() { 3 } else { 2 }).collect();
        e.restore_many(old, &format!("{name}/dequantize"), Arc::clone(&dequantize), inputs);
    }
    Some(())
}

/// Quantised op(x) becomes op(quantised x), where nothing else reads op(x).
fn raise_quantization(e: &mut Editor, id: NodeId) -> Option<()> {
    let (mut value, grid) = quantizes(e, id)?;
    let quantize = Arc::clone(&e.node(id).op);
    let dtype = e.ty(e.output(id)?).dtype;
    let mut target = id;
    // Through as many operators as there are.
    while let Some(mover) = e.producer(value) {
        let count = moved_inputs(e, mover)?;
        if e.only_user(value) != Some(target) {
            return None;
        }
        let node = e.node(mover);
        let (op, name) = (Arc::clone(&node.op), node.name.clone());
        let mut inputs = node.inputs.clone();
        if inputs.iter().take(count).any(|v| v.is_none_or(|v| e.constant(v).is_some())) {
            return None;
        }
        let mut parameters = vec![Some(grid.scale)];
        parameters.extend(grid.zero.map(Some));
        let mut last = None;
        for input in inputs.iter_mut().take(count) {
            let x = (*input)?;
            let all: Vec<_> = [Some(x)].into_iter().chain(parameters.iter().copied()).collect();
            let name = format!("{name}/quantize");
            let quantized = e.add_node(&name, Arc::clone(&quantize), &all, Vec::new()).ok()?;
            if e.ty(quantized).dtype != dtype {
                return None;
            }
            *input = Some(quantized);
            last = Some((x, quantized));
        }
        // The quantisation's place is taken by the operator on bytes.
        e.fuse(target, &[mover], target, op, inputs);
        let (x, quantized) = last.filter(|_| count == 1)?;
        (value, target) = (x, e.producer(quantized)?);
    }
    Some(())
}

/// A quantisation of what was dequantised from the same grid changes nothing.
fn cancel(e: &mut Editor, id: NodeId) -> Option<()> {
    let (x, grid) = quantizes(e, id)?;
    let (bytes, before) = dequantized(e, x)?;
    let output = e.output(id)?;
    let same = grid.equals(e, &before) && e.can_replace(output, bytes);
    same.then(|| {
        e.replace_value(output, bytes);
        e.remove(id);
    })
}

/// A quantisation that a calculation is merged with.
struct Merge {
    /// The quantisation.
    id: NodeId,
    /// The calculation.
    main: NodeId,
    /// All merged nodes.
    nodes: Vec<NodeId>,
    grid: Grid,
    dtype: DType,
    bounds: Option<[i32; 2]>,
    name: String,
}

fn merge(e: &mut Editor, id: NodeId) -> Option<()> {
    let (mut value, grid) = quantizes(e, id)?;
    let dtype = e.ty(e.output(id)?).dtype;
    let mut nodes = vec![id];
    let mut bounds = None;
    let mut main = e.producer(value)?;
    if let Some((x, activation)) = pattern::activation(e, main) {
        let [low, high] = match activation {
            Activation::Relu => [0.0, f32::INFINITY],
            Activation::Clip { min, max } if min <= max => [min, max],
            _ => return None,
        };
        if e.only_user(value) != Some(id) {
            return None;
        }
        bounds = Some([
            quantized_number(e, &grid, dtype, low)?,
            quantized_number(e, &grid, dtype, high)?,
        ]);
        nodes.push(main);
        value = x;
        main = e.producer(x)?;
    }
    if e.only_user(value) != nodes.last().copied() {
        return None;
    }
    nodes.push(main);
    let name = e.node(main).name.clone();
    let m = Merge { id, main, nodes, grid, dtype, bounds, name };
    let op = Arc::clone(&e.node(main).op);
    if let Some(conv) = op.downcast::<Conv>() {
        merge_conv(e, &m, conv)
    } else if let Some(gemm) = op.downcast::<Gemm>() {
        let plain = gemm.alpha == 1.0 && gemm.beta == 1.0 && !gemm.trans_a;
        if plain { merge_product(e, &m, gemm.trans_b) } else { None }
    } else if op.is::<MatMul>() && op.op_type() == "MatMul" {
        merge_product(e, &m, false)
    } else if op.op_type() == "Add" {
        merge_add(e, &m)
    } else if let Some(pool) = op.downcast::<GlobalPooling>() {
        merge_mean(e, &m, pool)
    } else {
        None
    }
}

/// A number as QuantizeLinear rounds it.
fn quantized_number(e: &Editor, grid: &Grid, dtype: DType, x: f32) -> Option<i32> {
    let [low, high] = if dtype == DType::I8 { [-128.0, 127.0] } else { [0.0, 255.0] };
    let value = (x / grid.scale(e)?).round_ties_even() + grid.zero(e)? as f32;
    Some(value.clamp(low, high) as i32)
}

impl Merge {
    /// Puts the integer operator into the place of the merged nodes.
    fn finish(&self, e: &mut Editor, op: impl Op, inputs: Vec<ValueId>) -> Option<()> {
        let inputs: Vec<Option<ValueId>> = inputs.into_iter().map(Some).collect();
        let types = op.infer(&e.operands(&inputs)).ok()?;
        if types.first() != Some(e.ty(e.output(self.id)?)) {
            return None;
        }
        let others: Vec<NodeId> = self.nodes.iter().copied().filter(|n| *n != self.main).collect();
        e.fuse(self.main, &others, self.id, Arc::new(op), inputs);
        Some(())
    }

    fn zero(&self, e: &mut Editor) -> ValueId {
        self.grid.zero_input(e, &self.name, self.dtype)
    }
}

/// Quantised weights.
struct Weight {
    bytes: ValueId,
    scale: ValueId,
    zero: Option<ValueId>,
    /// Output channels lie along the first axis, not along the last.
    channels_first: bool,
}

/// The constant bytes behind a dequantisation with one scale, or one per index of `axis`.
fn weight(e: &Editor, value: ValueId, axis: usize) -> Option<Weight> {
    let id = e.producer(value)?;
    let dequantize = e.node(id).op.downcast::<DequantizeLinear>()?;
    let (bytes, scale, zero) = (e.input(id, 0)?, e.input(id, 1)?, e.input(id, 2));
    let (shape, scales) = (e.shape(bytes), e.constant(scale)?.as_slice::<f32>()?);
    let along = usize::try_from(if dequantize.grid.axis < 0 {
        dequantize.grid.axis + shape.len() as i64
    } else {
        dequantize.grid.axis
    });
    let grid = dequantize.grid.block == 0
        && (scales.len() == 1 || (along == Ok(axis) && scales.len() == *shape.get(axis)?));
    let usable = grid
        && is_bytes(e, bytes)
        && e.constant(bytes).is_some()
        && zero.is_none_or(|z| e.constant(z).is_some())
        && scales.iter().all(|s| *s > 0.0 && s.is_finite())
        && e.ty(value).dtype == DType::F32;
    usable.then_some(Weight { bytes, scale, zero, channels_first: axis == 0 })
}

impl Weight {
    /// For each of n output channels, a bound of its sum of products with bytes.
    fn largest_sums(&self, e: &Editor, n: usize) -> Option<Vec<f64>> {
        let values = e.constant(self.bytes)?.to_i64s()?;
        let zeros = match self.zero {
            None => vec![0],
            Some(zero) => e.constant(zero)?.to_i64s()?,
        };
        let mut sums = vec![0i64; n];
        let rows = self.channels_first;
        let inner = values.len() / n.max(1);
        for (i, &value) in values.iter().enumerate() {
            let j = if rows { i / inner.max(1) } else { i % n };
            sums[j] += (value - zeros[if zeros.len() == 1 { 0 } else { j }]).abs();
        }
        Some(sums.into_iter().map(|s| (s * 255) as f64).collect())
    }

    fn zero_input(&self, e: &mut Editor, name: &str) -> ValueId {
        let dtype = e.ty(self.bytes).dtype;
        Grid { scale: self.scale, zero: self.zero }.zero_input(e, &format!("{name}/weight"), dtype)
    }
}

/// The bias in steps of the sums. It is written so already, or is rounded to them: they are finer
/// than the result's steps by far.
fn bias(
    e: &mut Editor,
    m: &Merge,
    value: ValueId,
    x: &Grid,
    w: &Weight,
    n: usize,
) -> Option<ValueId> {
    let x_scale = x.scale(e)?;
    let w_scales = e.constant(w.scale)?.as_slice::<f32>()?.to_vec();
    let step = |j: usize| {
        f64::from(x_scale) * f64::from(w_scales[if w_scales.len() == 1 { 0 } else { j }])
    };
    let mut result = Vec::with_capacity(n);
    let written = e.producer(value).filter(|id| e.node(*id).op.is::<DequantizeLinear>());
    match written {
        Some(id) => {
            let steps = e.constant_input(id, 0)?.as_slice::<i32>()?;
            let scales = e.constant_input(id, 1)?.as_slice::<f32>()?;
            let zeros = match e.input(id, 2) {
                None => vec![0],
                Some(zero) => e.constant(zero)?.to_i64s()?,
            };
            let per_step = steps.len() == n && [1, n].contains(&scales.len());
            if !per_step || zeros.iter().any(|z| *z != 0) {
                return None;
            }
            for (j, &steps) in steps.iter().enumerate() {
                let scale = f64::from(scales[if scales.len() == 1 { 0 } else { j }]);
                let ratio = scale / step(j);
                let exact = (ratio - 1.0).abs() < 1e-5;
                result.push(if exact { f64::from(steps) } else { f64::from(steps) * ratio });
            }
        }
        None => {
            let values = e.constant(value)?.as_slice::<f32>()?;
            if values.len() != n {
                return None;
            }
            result.extend(values.iter().enumerate().map(|(j, &v)| f64::from(v) / step(j)));
        }
    }
    let products = w.largest_sums(e, n)?;
    let y_scale = f64::from(m.grid.scale(e)?);
    let mut rounded = Vec::with_capacity(n);
    for (j, value) in result.into_iter().enumerate() {
        // Room is left for the products. Channels with next to no weights have tiny steps, and
        // biases that fill 32 bits.
        let room = (f64::from(i32::MAX) - products[j]).max(0.0);
        let clamped = value.round_ties_even().clamp(-room, room);
        if (value - clamped).abs() * step(j) > MAX_BIAS_ERROR * y_scale && clamped.abs() == room {
            return None;
        }
        rounded.push(clamped as i32);
    }
    let tensor = Tensor::from_slice([n], &rounded);
    Some(e.add_constant(format!("{}/bias", m.name), tensor))
}

fn merge_conv(e: &mut Editor, m: &Merge, conv: &Conv) -> Option<()> {
    let plain = conv.layout == Layout::Nchw
        && conv.activation == Activation::None
        && conv.residual == ResidualKind::None;
    let (x, x_grid) = dequantized(e, e.input(m.main, 0)?)?;
    let w = weight(e, e.input(m.main, 1)?, 0)?;
    let shape = e.shape(w.bytes).to_vec();
    if !plain || shape[1..].iter().product::<usize>() > MAX_TERMS {
        return None;
    }
    let bias = match e.input(m.main, 2) {
        None => None,
        Some(value) => Some(bias(e, m, value, &x_grid, &w, shape[0])?),
    };
    let op = IntConv {
        window: conv.window.clone(),
        group: conv.group.max(1),
        layout: Layout::Nchw,
        requantize: true,
        bounds: m.bounds,
    };
    let mut inputs = product_inputs(e, m, (x, &x_grid), &w);
    inputs.extend(bias);
    m.finish(e, op, inputs)
}

/// Inputs of QLinearConv and QLinearMatMul but the bias.
fn product_inputs(e: &mut Editor, m: &Merge, x: (ValueId, &Grid), w: &Weight) -> Vec<ValueId> {
    let x_dtype = e.ty(x.0).dtype;
    let x_zero = x.1.zero_input(e, &format!("{}/x", m.name), x_dtype);
    let (w_zero, y_zero) = (w.zero_input(e, &m.name), m.zero(e));
    vec![x.0, x.1.scale, x_zero, w.bytes, w.scale, w_zero, m.grid.scale, y_zero]
}

/// MatMul, and Gemm without factors.
fn merge_product(e: &mut Editor, m: &Merge, trans_b: bool) -> Option<()> {
    let (a, a_grid) = dequantized(e, e.input(m.main, 0)?)?;
    let b_value = e.input(m.main, 1)?;
    let rank = e.shape(b_value).len();
    // Scales lie along the columns.
    let axis = if trans_b { 0 } else { rank.checked_sub(1)? };
    let w = match (weight(e, b_value, axis), dequantized(e, b_value)) {
        (Some(w), _) => w,
        (None, Some((bytes, grid))) => {
            Weight { bytes, scale: grid.scale, zero: grid.zero, channels_first: trans_b }
        }
        (None, None) => return None,
    };
    let shape = e.shape(w.bytes).to_vec();
    if rank < 2 || shape.len() != rank || (trans_b && rank != 2) {
        return None;
    }
    let (n, k) = if trans_b { (shape[0], shape[1]) } else { (shape[rank - 1], shape[rank - 2]) };
    if k > MAX_TERMS {
        return None;
    }
    let bias = match e.input(m.main, 2) {
        None => None,
        Some(value) => Some(bias(e, m, value, &a_grid, &w, n)?),
    };
    let op = IntMatMul { requantize: true, trans_b, bounds: m.bounds };
    let mut inputs = product_inputs(e, m, (a, &a_grid), &w);
    inputs.extend(bias);
    m.finish(e, op, inputs)
}

fn merge_add(e: &mut Editor, m: &Merge) -> Option<()> {
    let (a, a_grid) = dequantized(e, e.input(m.main, 0)?)?;
    let (b, b_grid) = dequantized(e, e.input(m.main, 1)?)?;
    if e.shape(a) != e.shape(b) || e.node(m.main).inputs.len() != 2 {
        return None;
    }
    let (a_dtype, b_dtype) = (e.ty(a).dtype, e.ty(b).dtype);
    let a_zero = a_grid.zero_input(e, &format!("{}/a", m.name), a_dtype);
    let b_zero = b_grid.zero_input(e, &format!("{}/b", m.name), b_dtype);
    let zero = m.zero(e);
    let inputs = vec![a, a_grid.scale, a_zero, b, b_grid.scale, b_zero, m.grid.scale, zero];
    m.finish(e, IntAdd { bounds: m.bounds }, inputs)
}

fn merge_mean(e: &mut Editor, m: &Merge, pool: &GlobalPooling) -> Option<()> {
    let (x, grid) = dequantized(e, e.input(m.main, 0)?)?;
    let terms: usize = e.shape(x).get(2..)?.iter().product();
    let average = matches!(pool.kind, PoolKind::Average { .. }) && pool.layout == Layout::Nchw;
    // Sums of bytes without products: far more of them fit.
    if !average || terms > 100 * MAX_TERMS {
        return None;
    }
    let dtype = e.ty(x).dtype;
    let zero = grid.zero_input(e, &format!("{}/x", m.name), dtype);
    let inputs = vec![x, grid.scale, zero, m.grid.scale, m.zero(e)];
    m.finish(e, IntMean { layout: Layout::Nchw, bounds: m.bounds }, inputs)
}
