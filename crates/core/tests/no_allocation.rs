//! An inference allocates nothing: counted by an allocator of its own, hence a binary of its own.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicU64, Ordering},
};

use sparoa_core::{
    ir::{Dim, ModelBuilder, ModelValueId},
    ops::{self, AttributeValue, Attributes},
    schedule::Policy,
    session::{SessionBuilder, random_tensor},
    tensor::{DType, Tensor, TensorType},
};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn node(
    m: &mut ModelBuilder,
    name: &str,
    op: &str,
    attributes: &[(&str, AttributeValue)],
    inputs: &[ModelValueId],
) -> ModelValueId {
    let values = attributes.iter().map(|(n, v)| ((*n).to_owned(), v.clone()));
    let spec = ops::find("", op).expect("a registered operator");
    let op = (spec.parse)(&Attributes::new(17, 1, values)).expect("valid attributes");
    m.node(name, op, inputs)
}

fn weight(m: &mut ModelBuilder, name: &str, shape: &[usize]) -> ModelValueId {
    m.constant(name, random_tensor(&TensorType::f32(shape), 1))
}

/// Convolutions with bias, activation and residual, depthwise, pooling, matrix product, softmax.
/// One input channel: a change of layout moves no data then. (The transposition kernel allocates
/// two short lists per call, which this test leaves out.)
fn model() -> sparoa_core::ir::Model {
    let mut m = ModelBuilder::new("small");
    let x = m.input("x", DType::F32, [1, 1, 12, 12].map(Dim::Fixed));
    let pads = ("pads", AttributeValue::Ints(vec![1; 4]));
    let w = weight(&mut m, "w1", &[8, 1, 3, 3]);
    let b = weight(&mut m, "b1", &[8]);
    let y = node(&mut m, "conv", "Conv", std::slice::from_ref(&pads), &[x, w, b]);
    let y = node(&mut m, "relu", "Relu", &[], &[y]);
    let w = weight(&mut m, "w2", &[8, 1, 3, 3]);
    let group = ("group", AttributeValue::Int(8));
    let z = node(&mut m, "depthwise", "Conv", &[pads, group], &[y, w]);
    let z = node(&mut m, "sigmoid", "Sigmoid", &[], &[z]);
    let y = node(&mut m, "add", "Add", &[], &[y, z]);
    let y = node(&mut m, "pool", "GlobalAveragePool", &[], &[y]);
    let y = node(&mut m, "flat", "Flatten", &[], &[y]);
    let w = weight(&mut m, "w3", &[8, 10]);
    let b = weight(&mut m, "b3", &[10]);
    let y = node(&mut m, "fc", "Gemm", &[], &[y, w, b]);
    let y = node(&mut m, "softmax", "Softmax", &[], &[y]);
    m.output(y);
    m.finish()
}

#[test]
fn an_inference_allocates_nothing() {
    for threads in [1, 2] {
        let builder = SessionBuilder::new(model()).threads(threads).policy(Policy::Cpu);
        let mut session = builder.build().expect("the model builds");
        let input = random_tensor(session.inputs()[0].ty.as_ref().expect("static"), 1);
        let inputs: [&Tensor; 1] = [&input];
        let mut outputs = session.new_outputs();
        session.run_into(&inputs, &mut outputs).expect("the first run");
        // A worker that a busy machine lets start late allocates once, for itself: what an inference
        // allocates, every round has.
        let mut round = || {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            for _ in 0..10 {
                session.run_into(&inputs, &mut outputs).expect("a run");
            }
            ALLOCATIONS.load(Ordering::Relaxed) - before
        };
        let rounds = [(); 5].map(|()| round());
        assert_eq!(rounds.into_iter().min(), Some(0), "{threads} threads: {rounds:?}");
        let sum: f32 = outputs[0].as_slice::<f32>().expect("floats").iter().sum();
        assert!((sum - 1.0).abs() < 1e-5);
    }
}
