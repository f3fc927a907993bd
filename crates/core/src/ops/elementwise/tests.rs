//! Elementwise operators against hand-computed values and plain index arithmetic.

use std::sync::Arc;

use sparoa_kernels::pool::Pool;

use super::*;
use crate::{
    ops::{Attributes, evaluate, find},
    tensor::{Element, Tensor},
};

fn parse(name: &str, opset: u32, attributes: &[(&str, AttributeValue)]) -> Arc<dyn Op> {
    let values = attributes.iter().map(|(k, v)| ((*k).to_owned(), v.clone()));
    (find("", name).unwrap().parse)(&Attributes::new(opset, 1, values)).unwrap()
}

fn run(op: &dyn Op, inputs: &[&Tensor]) -> Tensor {
    let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
    evaluate(op, &inputs, &Pool::single()).unwrap().remove(0)
}

fn t<T: Element>(shape: &[usize], data: &[T]) -> Tensor {
    Tensor::from_slice(shape, data)
}

#[test]
fn arithmetic_broadcasts() {
    let add = parse("Add", 14, &[]);
    let y = run(
        &*add,
        &[&t(&[2, 1, 2], &[1.0f32, 2.0, 3.0, 4.0]), &t(&[3, 1], &[10.0f32, 20.0, 30.0])],
    );
    assert_eq!(y.shape(), [2, 3, 2]);
    let expected = [11.0f32, 12.0, 21.0, 22.0, 31.0, 32.0, 13.0, 14.0, 23.0, 24.0, 33.0, 34.0];
    assert_eq!(y.as_slice::<f32>().unwrap(), expected);
    let empty = run(&*add, &[&t::<f32>(&[0, 3], &[]), &t(&[3], &[1.0f32, 2.0, 3.0])]);
    assert_eq!(empty.shape(), [0, 3]);
}

/// Every way of reading an operand, against plain index arithmetic, over several threads.
#[test]
fn every_broadcast_pattern_agrees_with_indexing() {
    let pool = Pool::new(3);
    let cases: &[(&[usize], &[usize])] = &[
        (&[3, 5, 1031], &[3, 5, 1031]),
        (&[3, 5, 1031], &[1031]),
        (&[3, 5, 1031], &[5, 1]),
        (&[3, 5, 1031], &[3, 1, 1]),
        (&[3, 5, 1031], &[3, 1, 1031]),
        (&[4, 700, 7], &[7]),
        (&[4, 700, 7], &[700, 1]),
        (&[4, 700, 7], &[4, 1, 7]),
        (&[4, 700, 7], &[1, 1, 1]),
        (&[1, 9, 1, 300], &[7, 1, 5, 1]),
        (&[], &[2000]),
    ];
    for (a, b) in cases {
        let (na, nb): (usize, usize) = (a.iter().product(), b.iter().product());
        let x: Vec<f32> = (0..na).map(|i| (i % 251) as f32).collect();
        let z: Vec<f32> = (0..nb).map(|i| (i % 13) as f32 * 1000.0).collect();
        let op = Elementwise::new(Expr::binary(Binary::Sub));
        let (x, z) = (t(a, &x), t(b, &z));
        let y = evaluate(&op, &[Some(&x), Some(&z)], &pool).unwrap().remove(0);
        let at = |v: &Tensor, index: &[usize]| {
            let skip = index.len() - v.shape().len();
            let flat = v
                .shape()
                .iter()
                .zip(&index[skip..])
                .fold(0, |n, (&d, &i)| n * d + if d == 1 { 0 } else { i });
            v.as_slice::<f32>().unwrap()[flat]
        };
        let mut index = vec![0; y.shape().len()];
        for &value in y.as_slice::<f32>().unwrap() {
            assert_eq!(value, at(&x, &index) - at(&z, &index), "{a:?} {b:?} {index:?}");
            for d in (0..index.len()).rev() {
                index[d] += 1;
                if index[d] < y.shape()[d] {
                    break;
                }
                index[d] = 0;
            }
        }
    }
}

#[test]
fn element_types() {
    let y = run(&*parse("Div", 14, &[]), &[&t(&[2], &[-7i64, 7]), &t(&[], &[2i64])]);
    assert_eq!(y.as_slice::<i64>().unwrap(), [-3, 3]);
    let y = run(&*parse("Pow", 15, &[]), &[&t(&[2], &[3i32, 4]), &t(&[], &[0.5f32])]);
    assert_eq!(y.as_slice::<i32>().unwrap(), [1, 2]);
    let y = run(&*parse("Pow", 15, &[]), &[&t(&[2], &[3.0f32, 4.0]), &t(&[], &[2i64])]);
    assert_eq!(y.as_slice::<f32>().unwrap(), [9.0, 16.0]);
    let half = |v: f32| half::f16::from_f32(v);
    let y =
        run(&*parse("Add", 14, &[]), &[&t(&[2], &[half(1.5), half(2.0)]), &t(&[], &[half(0.25)])]);
    assert_eq!(y.as_slice::<half::f16>().unwrap(), [half(1.75), half(2.25)]);
    let y = run(&*parse("Less", 13, &[]), &[&t(&[3], &[1i64, 5, 3]), &t(&[], &[3i64])]);
    assert_eq!((y.dtype(), y.bytes()), (DType::Bool, &[1u8, 0, 0][..]));
    let y = run(
        &*parse("Where", 16, &[]),
        &[&Tensor::from_bools([2, 1], &[true, false]), &t(&[2], &[1i64, 2]), &t(&[], &[9i64])],
    );
    assert_eq!(y.as_slice::<i64>().unwrap(), [1, 2, 9, 9]);
    let bools = Tensor::from_bools([2], &[true, false]);
    let y = run(&*parse("Not", 1, &[]), &[&bools]);
    assert_eq!((y.dtype(), y.bytes()), (DType::Bool, &[0u8, 1][..]));
    let y = run(&*parse("Equal", 19, &[]), &[&bools, &Tensor::from_bools([], &[false])]);
    assert_eq!(y.bytes(), [0, 1]);
}

#[test]
fn variadic_and_optional_inputs() {
    let (a, b, c) = (t(&[2], &[1.0f32, 8.0]), t(&[1], &[4.0f32]), t(&[], &[1.0f32]));
    let mean = run(&*parse("Mean", 13, &[]), &[&a, &b, &c]);
    assert_eq!(mean.as_slice::<f32>().unwrap(), [2.0, 13.0 / 3.0]);
    let max = run(&*parse("Max", 13, &[]), &[&a, &b]);
    assert_eq!(max.as_slice::<f32>().unwrap(), [4.0, 8.0]);
    assert_eq!(run(&*parse("Sum", 13, &[]), &[&a]), a);
    let clip = parse("Clip", 13, &[]);
    let high = evaluate(&*clip, &[Some(&a), None, Some(&c)], &Pool::single()).unwrap();
    assert_eq!(high[0].as_slice::<f32>().unwrap(), [1.0, 1.0]);
    let low = run(&*clip, &[&t(&[2], &[-3i8, 8]), &t(&[], &[0i8])]);
    assert_eq!(low.as_slice::<i8>().unwrap(), [0, 8]);
    let old = parse("Clip", 10, &[("max", AttributeValue::Float(2.0))]);
    assert_eq!(run(&*old, &[&a]).as_slice::<f32>().unwrap(), [1.0, 2.0]);
}

#[test]
fn composite_operators() {
    let x = t(&[3], &[-2.0f32, 0.0, 2.0]);
    let check = |name: &str, expected: [f32; 3]| {
        let y = run(&*parse(name, 20, &[]), &[&x]);
        for (y, e) in y.as_slice::<f32>().unwrap().iter().zip(expected) {
            assert!((y - e).abs() < 1e-6, "{name}: {y} {e}");
        }
    };
    check("Softsign", [-2.0 / 3.0, 0.0, 2.0 / 3.0]);
    check("Selu", [-1.520_166_9, 0.0, 2.101_402]);
    check("Celu", [-0.864_664_7, 0.0, 2.0]);
    check("ThresholdedRelu", [0.0, 0.0, 2.0]);
    check("Shrink", [-2.0, 0.0, 2.0]);
    let y = run(&*parse("PRelu", 16, &[]), &[&x, &t(&[1], &[0.5f32])]);
    assert_eq!(y.as_slice::<f32>().unwrap(), [-1.0, 0.0, 2.0]);
}

#[test]
fn refuses_what_does_not_fit() {
    let add = parse("Add", 14, &[]);
    let of = |ty: TensorType| Some(Operand::dynamic(ty));
    let types = |a, b| [of(a), of(b)];
    assert!(add.infer(&types(TensorType::f32([2]), TensorType::f32([3]))).is_err());
    assert!(add.infer(&types(TensorType::f32([2]), TensorType::new(DType::I64, [2]))).is_err());
    assert!(add.infer(&[of(TensorType::f32([2]))]).is_err());
    assert!(add.infer(&[None, of(TensorType::f32([2]))]).is_err());
}

fn operands(shapes: &[&[usize]]) -> (Vec<Option<Operand>>, Vec<TensorType>) {
    let inputs: Vec<_> =
        shapes.iter().map(|s| Some(Operand::dynamic(TensorType::f32(*s)))).collect();
    let outputs = Elementwise::new(Expr::binary(Binary::Mul)).infer(&inputs).unwrap();
    (inputs, outputs)
}

#[test]
fn transposes_pass_through_lower_ranks() {
    let mul = Elementwise::new(Expr::binary(Binary::Mul));
    let nhwc = [0, 2, 3, 1];
    let permuted = |shapes: &[&[usize]], perm: &[usize]| {
        let (inputs, outputs) = operands(shapes);
        mul.permuted(&Operands { inputs: &inputs, outputs: &outputs }, perm).map(|p| p.inputs)
    };
    let x: &[usize] = &[2, 3, 4, 5];
    let whole = Some(nhwc.to_vec());
    assert_eq!(permuted(&[x, &[3, 1, 1]], &nhwc), Some(vec![whole.clone(), Some(vec![1, 2, 0])]));
    assert_eq!(permuted(&[x, &[]], &nhwc), Some(vec![whole.clone(), None]));
    assert_eq!(permuted(&[x, &[1, 1]], &nhwc), Some(vec![whole.clone(), None]));
    assert_eq!(permuted(&[x, &[4, 5]], &nhwc), None);
    // A channels-last bias cannot become channels-first without more dimensions.
    assert_eq!(permuted(&[x, &[5]], &[0, 3, 1, 2]), None);
    assert_eq!(
        permuted(&[x, &[4, 1]], &[0, 1, 3, 2]),
        Some(vec![Some(vec![0, 1, 3, 2]), Some(vec![1, 0])])
    );
}

#[test]
fn splits_along_the_first_long_axis() {
    let mul = Elementwise::new(Expr::binary(Binary::Mul));
    let (inputs, outputs) = operands(&[&[1, 3, 4], &[3, 1], &[4]]);
    let x = Operands { inputs: &inputs, outputs: &outputs };
    assert_eq!(mul.split_axis(&x), Some(1));
    let part = mul.split(&x, 1..3).unwrap();
    let range = |axis| PartInput::Range { axis, range: 1..3 };
    assert_eq!(part.inputs, [range(1), range(0), PartInput::Whole]);
}

#[test]
fn long_expressions_reuse_registers() {
    // relu(x*2 + 1) * sigmoid(x) - x, over more than one block and thread.
    let code = vec![
        Instr::Binary(Binary::Mul, Arg::Input(0), Arg::Imm(2.0)),
        Instr::Binary(Binary::Add, Arg::Result(0), Arg::Imm(1.0)),
        Instr::Unary(Unary::Activation(sparoa_kernels::Activation::Relu), Arg::Result(1)),
        Instr::Unary(Unary::Activation(sparoa_kernels::Activation::Sigmoid), Arg::Input(0)),
        Instr::Binary(Binary::Mul, Arg::Result(2), Arg::Result(3)),
        Instr::Binary(Binary::Sub, Arg::Result(4), Arg::Input(0)),
    ];
    let op = Elementwise::new(Expr::new(code));
    assert_eq!((op.op_type(), op.domain()), ("Elementwise", "ai.sparoa"));
    let x: Vec<f32> = (0..20_001).map(|i| (i as f32 - 10_000.0) / 2000.0).collect();
    let y = evaluate(&op, &[Some(&t(&[20_001], &x))], &Pool::new(2)).unwrap().remove(0);
    for (&x, &y) in x.iter().zip(y.as_slice::<f32>().unwrap()) {
        let expected = (2.0 * x + 1.0).max(0.0) / (1.0 + (-x).exp()) - x;
        assert!((y - expected).abs() < 1e-5 * expected.abs().max(1.0), "{x}: {y} {expected}");
    }
}

#[test]
fn examples_evaluate() {
    for spec in SPECS {
        for example in (spec.examples)() {
            let attributes = example.attributes.iter().map(|(k, v)| ((*k).to_owned(), v.clone()));
            let op = (spec.parse)(&Attributes::new(24, 1, attributes)).unwrap();
            let inputs: Vec<_> =
                example.inputs.iter().map(|i| i.as_ref().map(|i| &i.value)).collect();
            evaluate(&*op, &inputs, &Pool::single()).unwrap();
            assert_eq!((op.op_type(), op.domain()), (spec.name, spec.domain), "{op:?}");
        }
    }
}
