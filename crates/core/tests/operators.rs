//! Every registered operator keeps its own promises on its examples: kernels with constant and
//! with run-time inputs, splits, channels-last twins, commuted transpositions and written
//! attributes all give the same outputs.

use std::sync::Arc;

use sparoa_core::{
    ops::{self, Example, KernelIo, Op, OpError, OpSpec, Operand, Operands, PartInput, evaluate},
    tensor::{DType, Storage, Tensor, TensorMut, TensorRef, TensorType},
};
use sparoa_kernels::{permute::permute, pool::Pool};

/// Calls `check` with every example, its operator, its input tensors and its reference outputs.
fn each(check: impl Fn(&str, &Example, &Arc<dyn Op>, &[Option<Tensor>], &[Tensor])) {
    let pool = Pool::single();
    for spec in ops::specs() {
        let examples = (spec.examples)();
        assert!(!examples.is_empty(), "{} has no example", spec.name);
        for example in examples {
            let label = format!("{}:{} ({})", spec.domain, spec.name, example.name);
            arity(spec, &example, &label);
            let op = example.op(spec).unwrap_or_else(|e| panic!("{label}: {e}"));
            if !op.is_pure() {
                continue;
            }
            let inputs: Vec<Option<Tensor>> =
                example.inputs.iter().map(|i| i.as_ref().map(|i| i.value.clone())).collect();
            let refs: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
            let outputs = match evaluate(&*op, &refs, &pool) {
                Ok(outputs) => outputs,
                // Replaced by its expansion before anything runs.
                Err(_) if op.expand(&operands(&example, &inputs)).is_some() => continue,
                Err(e) => panic!("{label}: {e}"),
            };
            assert_eq!(outputs.len(), example.outputs, "{label}: outputs");
            check(&label, &example, &op, &inputs, &outputs);
        }
    }
}

fn arity(spec: &OpSpec, example: &Example, label: &str) {
    let (least, most) = spec.inputs;
    assert!((least..=most).contains(&example.inputs.len()), "{label}: number of inputs");
    let (least, most) = spec.outputs;
    assert!((least..=most).contains(&example.outputs), "{label}: number of outputs");
}

/// The inputs as the graph would know them: only constants have values.
fn operands(example: &Example, inputs: &[Option<Tensor>]) -> Vec<Option<Operand>> {
    let with_flags = inputs.iter().zip(&example.inputs);
    with_flags
        .map(|(tensor, flag)| {
            let tensor = tensor.as_ref()?;
            Some(match flag {
                Some(flag) if flag.constant => Operand::constant(Arc::new(tensor.clone())),
                _ => Operand::dynamic(tensor.ty().clone()),
            })
        })
        .collect()
}

/// Prepares and runs `op`, scratch and outputs full of rubbish beforehand.
fn run(
    op: &dyn Op,
    operands: &[Option<Operand>],
    tensors: &[Option<Tensor>],
    pool: &Pool,
) -> Result<Vec<Tensor>, OpError> {
    let types = op.infer(operands)?;
    let kernel = op.cpu(&Operands { inputs: operands, outputs: &types })?;
    let mut outputs: Vec<Tensor> = types.into_iter().map(Tensor::zeros).collect();
    for output in &mut outputs {
        // Booleans are 0 or 1 whoever writes them.
        let rubbish = if output.dtype() == DType::Bool { 1 } else { 0xff };
        output.bytes_mut().fill(rubbish);
    }
    let mut scratch = Storage::zeroed(kernel.scratch_bytes(pool.threads()));
    scratch.bytes_mut().fill(0xff);
    let views: Vec<Option<TensorRef<'_>>> =
        tensors.iter().map(|t| t.as_ref().map(Tensor::view)).collect();
    let mut targets: Vec<TensorMut<'_>> = outputs.iter_mut().map(Tensor::view_mut).collect();
    kernel.run(
        &mut KernelIo { inputs: &views, outputs: &mut targets, scratch: scratch.bytes_mut() },
        pool,
    )?;
    drop(targets);
    Ok(outputs)
}

fn assert_close(got: &Tensor, want: &Tensor, label: &str) {
    assert_eq!(got.ty(), want.ty(), "{label}: type");
    let floats = |t: &Tensor| -> Option<Vec<f64>> {
        Some(match t.dtype() {
            DType::F32 => t.as_slice::<f32>()?.iter().map(|&v| f64::from(v)).collect(),
            DType::F64 => t.as_slice::<f64>()?.to_vec(),
            _ => return None,
        })
    };
    match (floats(got), floats(want)) {
        (Some(got), Some(want)) => {
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                let same = g == w || (g.is_nan() && w.is_nan());
                let close = (g - w).abs() <= 1e-5 + 1e-5 * w.abs();
                assert!(same || close, "{label}: element {i} is {g}, must be {w}");
            }
        }
        _ => assert_eq!(got.bytes(), want.bytes(), "{label}"),
    }
}

fn assert_all_close(got: &[Tensor], want: &[Tensor], label: &str) {
    assert_eq!(got.len(), want.len(), "{label}: number of outputs");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_close(got, want, &format!("{label}, output {i}"));
    }
}

fn transposed(tensor: &Tensor, perm: &[usize]) -> Tensor {
    let shape: Vec<usize> = perm.iter().map(|&d| tensor.shape()[d]).collect();
    let mut result = Tensor::zeros(TensorType::new(tensor.dtype(), shape));
    let size = tensor.dtype().size();
    permute(tensor.bytes(), size, tensor.shape(), perm, result.bytes_mut(), &Pool::single());
    result
}

/// `range` of `tensor` along `axis`.
fn sliced(tensor: &Tensor, axis: usize, range: &std::ops::Range<usize>) -> Tensor {
    let shape = tensor.shape();
    let inner = shape[axis + 1..].iter().product::<usize>() * tensor.dtype().size();
    let row = shape[axis] * inner;
    let bytes: Vec<u8> = tensor
        .bytes()
        .chunks_exact(row.max(1))
        .flat_map(|outer| &outer[range.start * inner..range.end * inner])
        .copied()
        .collect();
    let mut shape = shape.to_vec();
    shape[axis] = range.len();
    Tensor::new(TensorType::new(tensor.dtype(), shape), Storage::copy_from(&bytes)).unwrap()
}

#[test]
fn run_time_inputs_and_threads_change_nothing() {
    let pool = Pool::new(3);
    each(|label, example, op, inputs, want| {
        let operands = operands(example, inputs);
        let got = run(&**op, &operands, inputs, &pool)
            .unwrap_or_else(|e| panic!("{label} with run-time inputs: {e}"));
        assert_all_close(&got, want, label);
    });
}

#[test]
fn parts_make_the_whole() {
    let pool = Pool::single();
    each(|label, example, op, inputs, want| {
        let operands = operands(example, inputs);
        let types = op.infer(&operands).unwrap();
        let x = Operands { inputs: &operands, outputs: &types };
        let Some(axis) = op.split_axis(&x) else { return };
        let shape = &types[0].shape;
        assert_eq!(types.len(), 1, "{label}: only operators with one output are split");
        assert!(shape[..axis].iter().all(|&d| d == 1), "{label}: parts are contiguous");
        for cut in 1..shape[axis] {
            for range in [0..cut, cut..shape[axis]] {
                let label = format!("{label}, part {range:?} of axis {axis}");
                // A part may be impossible (it reads padding only); then the plan tries another.
                let Some(part) = op.split(&x, range.clone()) else { continue };
                assert_eq!(part.inputs.len(), inputs.len(), "{label}: inputs");
                let mut tensors = inputs.to_vec();
                for (i, input) in part.inputs.iter().enumerate() {
                    let (PartInput::Range { axis, range }, Some(tensor)) = (input, &inputs[i])
                    else {
                        continue;
                    };
                    let constant = operands[i].as_ref().is_some_and(|o| o.constant.is_some());
                    let contiguous = tensor.shape()[..*axis].iter().all(|&d| d == 1);
                    assert!(constant || contiguous, "{label}: input {i} is contiguous");
                    tensors[i] = Some(sliced(tensor, *axis, range));
                }
                let operands = self::operands(example, &tensors);
                let got = run(&*part.op, &operands, &tensors, &pool)
                    .unwrap_or_else(|e| panic!("{label}: {e}"));
                assert_close(&got[0], &sliced(&want[0], axis, &range), &label);
            }
        }
    });
}

#[test]
fn channels_last_twins_agree() {
    let pool = Pool::single();
    each(|label, example, op, inputs, want| {
        let Some(twin) = op.channels_last() else { return };
        let rank = want[0].shape().len();
        let last: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
        let first: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
        let mut tensors = inputs.to_vec();
        // Activations: the first input, and the residual of fused operators.
        for i in [0, 3] {
            if let Some(Some(tensor)) = tensors.get_mut(i)
                && (i == 0 || (op.domain() == "ai.sparoa" && tensor.shape() == want[0].shape()))
            {
                *tensor = transposed(tensor, &last);
            }
        }
        let got = run(&*twin, &operands(example, &tensors), &tensors, &pool)
            .unwrap_or_else(|e| panic!("{label}, channels last: {e}"));
        let got: Vec<Tensor> = got.iter().map(|t| transposed(t, &first)).collect();
        assert_all_close(&got, want, &format!("{label}, channels last"));
    });
}

#[test]
fn transpositions_pass_where_an_operator_says_so() {
    let pool = Pool::single();
    each(|label, example, op, inputs, want| {
        let operands = operands(example, inputs);
        let types = op.infer(&operands).unwrap();
        let rank = types[0].rank();
        if rank < 2 {
            return;
        }
        let reversed: Vec<usize> = (0..rank).rev().collect();
        let rotated: Vec<usize> = (1..rank).chain([0]).collect();
        for perm in [reversed, rotated] {
            let x = Operands { inputs: &operands, outputs: &types };
            let Some(permuted) = op.permuted(&x, &perm) else { continue };
            let label = format!("{label}, transposed by {perm:?}");
            let tensors: Vec<Option<Tensor>> = inputs
                .iter()
                .zip(&permuted.inputs)
                .map(|(tensor, perm)| match (tensor, perm) {
                    (Some(tensor), Some(perm)) => Some(transposed(tensor, perm)),
                    (tensor, _) => tensor.clone(),
                })
                .collect();
            let got = run(&*permuted.op, &self::operands(example, &tensors), &tensors, &pool)
                .unwrap_or_else(|e| panic!("{label}: {e}"));
            let want: Vec<Tensor> = want.iter().map(|t| transposed(t, &perm)).collect();
            assert_all_close(&got, &want, &label);
        }
    });
}

#[test]
fn written_attributes_read_back() {
    each(|label, example, op, _, _| {
        let has_subgraph =
            example.attributes.iter().any(|(_, v)| matches!(v, ops::AttributeValue::Graph(_)));
        if has_subgraph {
            return;
        }
        let spec = ops::find(op.domain(), op.op_type()).unwrap_or_else(|| {
            panic!("{label}: written as {}:{}, which is not registered", op.domain(), op.op_type())
        });
        let written = Example { attributes: op.attributes(), ..example.clone() };
        let read = written.op(spec).unwrap_or_else(|e| panic!("{label}, written: {e}"));
        assert_eq!(format!("{read:?}"), format!("{op:?}"), "{label}: attributes read back");
    });
}
