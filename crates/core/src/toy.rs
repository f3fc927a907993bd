//! Tiny exact operators and graphs for the tests of plan, schedule, engine and session.

use std::{ops::Range, sync::Arc, time::Duration};

use rand::{RngExt as _, SeedableRng};
use rand_pcg::Pcg32;
use sparoa_kernels::pool::Pool;

use crate::{
    ir::{Graph, Node, Value, ValueId},
    ops::{CpuKernel, KernelIo, Op, OpError, Operand, Operands, Part, PartInput},
    tensor::{Tensor, TensorMut, TensorType},
};

/// Integer-valued f32 arithmetic: every order of evaluation gives the same bits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Toy {
    /// `2 x + 1`; splits along the first dimension above 1.
    Affine,
    /// The same, in a third of a millisecond per row whatever else the machine does.
    Slow,
    /// `a + b`; splits likewise.
    Sum,
    /// `y[i] = x[i-1] + 2 x[i] + 3 x[i+1]` along axis 0, with this zero padding; splits by rows
    /// with a halo.
    Blur { top: usize, bottom: usize },
    /// Matrix product with a constant; splits along rows, or columns when there is one row.
    Product,
    /// Another shape.
    View(Vec<usize>),
    /// Rows in reverse; does not split.
    Flip,
    /// Two outputs: the halves of axis 0.
    Halves,
    /// Fails when an element is negative.
    Refuse,
    /// Panics.
    Panic,
}

fn first_axis(ty: &TensorType) -> Option<usize> {
    ty.shape.iter().position(|&d| d > 1)
}

impl Op for Toy {
    fn op_type(&self) -> &'static str {
        match self {
            Toy::Affine => "Affine",
            Toy::Slow => "Slow",
            Toy::Sum => "Sum",
            Toy::Blur { .. } => "Blur",
            Toy::Product => "Product",
            Toy::View(_) => "View",
            Toy::Flip => "Flip",
            Toy::Halves => "Halves",
            Toy::Refuse => "Refuse",
            Toy::Panic => "Panic",
        }
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let ty = inputs[0].as_ref().ok_or_else(|| OpError::invalid("no input"))?.ty.clone();
        Ok(match self {
            Toy::View(shape) => vec![TensorType::f32(shape.clone())],
            Toy::Blur { top, bottom } => {
                let rows = ty.shape[0] + top + bottom - 2;
                vec![TensorType::f32([rows, ty.shape[1]])]
            }
            Toy::Product => {
                let n = inputs[1].as_ref().expect("two inputs").ty.shape[1];
                vec![TensorType::f32([ty.shape[0], n])]
            }
            Toy::Halves => {
                let mut half = ty;
                half.shape[0] /= 2;
                vec![half.clone(), half]
            }
            _ => vec![ty],
        })
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        2 * x.output(0).len() as u64
    }

    fn cpu(&self, _: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        Ok(Box::new(self.clone()))
    }

    fn is_view(&self) -> bool {
        matches!(self, Toy::View(_))
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        match self {
            Toy::Affine | Toy::Slow | Toy::Sum | Toy::Product => first_axis(x.output(0)),
            Toy::Blur { .. } => Some(0),
            _ => None,
        }
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let axis = self.split_axis(x)?;
        let slice = |axis, range: &Range<usize>| PartInput::Range { axis, range: range.clone() };
        Some(match self {
            Toy::Blur { top, bottom } => {
                let rows = x.input(0).ty.shape[0] as isize;
                let start = range.start as isize - *top as isize;
                let end = range.end as isize - *top as isize + 2;
                let op = Toy::Blur {
                    top: (-start).max(0) as usize,
                    bottom: (end - rows).max(0) as usize,
                };
                debug_assert!(*bottom <= 1);
                let range = start.max(0) as usize..end.min(rows) as usize;
                Part { op: Arc::new(op), inputs: vec![PartInput::Range { axis: 0, range }] }
            }
            Toy::Product if axis == 1 => Part {
                op: Arc::new(self.clone()),
                inputs: vec![PartInput::Whole, slice(1, &range)],
            },
            Toy::Product => Part {
                op: Arc::new(self.clone()),
                inputs: vec![slice(0, &range), PartInput::Whole],
            },
            _ => Part {
                op: Arc::new(self.clone()),
                inputs: x.inputs.iter().map(|_| slice(axis, &range)).collect(),
            },
        })
    }
}

impl CpuKernel for Toy {
    fn run(&self, io: &mut KernelIo<'_, '_>, _: &Pool) -> Result<(), OpError> {
        let x = io.input(0);
        let a = x.slice::<f32>();
        let width: usize = x.shape.iter().skip(1).product();
        match self {
            Toy::Sum => {
                let b = io.input(1).slice::<f32>();
                for ((y, a), b) in out(&mut io.outputs[0]).iter_mut().zip(a).zip(b) {
                    *y = a + b;
                }
            }
            Toy::Affine | Toy::Slow => {
                if *self == Toy::Slow {
                    std::thread::sleep(Duration::from_micros(333) * x.shape[0] as u32);
                }
                for (y, a) in out(&mut io.outputs[0]).iter_mut().zip(a) {
                    *y = (2.0 * a + 1.0) % 4096.0;
                }
            }
            Toy::Blur { top, .. } => {
                let rows = x.shape[0];
                let at = |r: isize, c: usize| {
                    if r < 0 || r >= rows as isize { 0.0 } else { a[r as usize * width + c] }
                };
                for (i, y) in out(&mut io.outputs[0]).iter_mut().enumerate() {
                    let (r, c) = ((i / width) as isize - *top as isize, i % width);
                    *y = (at(r, c) + 2.0 * at(r + 1, c) + 3.0 * at(r + 2, c)) % 4096.0;
                }
            }
            Toy::Product => {
                let w = io.input(1);
                let (k, n) = (w.shape[0], w.shape[1]);
                let w = w.slice::<f32>();
                for (i, y) in out(&mut io.outputs[0]).iter_mut().enumerate() {
                    let (m, j) = (i / n, i % n);
                    *y = (0..k).map(|p| a[m * k + p] * w[p * n + j]).sum::<f32>() % 4096.0;
                }
            }
            Toy::Flip => {
                let rows = x.shape[0];
                for (i, y) in out(&mut io.outputs[0]).chunks_exact_mut(width).enumerate() {
                    y.copy_from_slice(&a[(rows - 1 - i) * width..][..width]);
                }
            }
            Toy::Halves => {
                let half = a.len() / 2;
                out(&mut io.outputs[0]).copy_from_slice(&a[..half]);
                out(&mut io.outputs[1]).copy_from_slice(&a[half..]);
            }
            Toy::Refuse if a.iter().any(|a| *a < 0.0) => {
                return Err(OpError::Value("a negative element".into()));
            }
            Toy::Refuse | Toy::View(_) => out(&mut io.outputs[0]).copy_from_slice(a),
            Toy::Panic => panic!("toy panic"),
        }
        Ok(())
    }
}

fn out<'a>(t: &'a mut TensorMut<'_>) -> &'a mut [f32] {
    t.slice_mut::<f32>()
}

/// Builds graphs of toys.
#[derive(Default)]
pub(crate) struct ToyGraph {
    pub graph: Graph,
}

impl ToyGraph {
    pub fn new(name: &str) -> ToyGraph {
        ToyGraph { graph: Graph { name: name.into(), ..Graph::default() } }
    }

    pub fn input(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let ty = TensorType::f32(shape);
        let id = self.graph.add_value(Value { name: name.into(), ty, constant: None });
        self.graph.inputs.push(id);
        id
    }

    pub fn constant(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let len: usize = shape.iter().product();
        let data: Vec<f32> = (0..len).map(|i| (i % 3) as f32).collect();
        self.graph.add_constant(name, Arc::new(Tensor::from_slice(shape, &data)))
    }

    pub fn add(&mut self, name: &str, op: Toy, inputs: &[ValueId]) -> ValueId {
        self.add_all(name, op, inputs)[0]
    }

    pub fn add_all(&mut self, name: &str, op: Toy, inputs: &[ValueId]) -> Vec<ValueId> {
        let mut node = Node {
            name: name.into(),
            op: Arc::new(op),
            inputs: inputs.iter().copied().map(Some).collect(),
            outputs: Vec::new(),
            origin: vec![name.into()],
        };
        let types = node.op.infer(&self.graph.input_operands(&node)).unwrap();
        let ids: Vec<ValueId> = types
            .into_iter()
            .enumerate()
            .map(|(i, ty)| {
                let suffix = if i == 0 { String::new() } else { format!(".{i}") };
                let name = format!("{name}{suffix}");
                self.graph.add_value(Value { name, ty, constant: None })
            })
            .collect();
        node.outputs = ids.iter().copied().map(Some).collect();
        self.graph.nodes.push(node);
        ids
    }

    pub fn output(mut self, id: ValueId) -> ToyGraph {
        self.graph.outputs.push(id);
        self
    }

    pub fn finish(self) -> Arc<Graph> {
        self.graph.verify().unwrap();
        Arc::new(self.graph)
    }
}

/// Four blurs in a row: `x -> a -> b -> c -> d`.
pub(crate) fn blur_chain() -> Arc<Graph> {
    let mut g = ToyGraph::new("chain");
    let mut x = g.input("x", &[8, 4]);
    for name in ["a", "b", "c", "d"] {
        x = g.add(name, Toy::Blur { top: 1, bottom: 1 }, &[x]);
    }
    g.output(x).finish()
}

/// Two branches from one input, joined: `x -> a -> b -+-> join`, `x -> c -> d -+`.
pub(crate) fn diamond() -> Arc<Graph> {
    let mut g = ToyGraph::new("diamond");
    let x = g.input("x", &[8, 4]);
    let a = g.add("a", Toy::Affine, &[x]);
    let b = g.add("b", Toy::Flip, &[a]);
    let c = g.add("c", Toy::Affine, &[x]);
    let d = g.add("d", Toy::Blur { top: 1, bottom: 1 }, &[c]);
    let join = g.add("join", Toy::Sum, &[b, d]);
    g.output(join).finish()
}

/// A random graph: all toys, shared inputs, views, unused values, several outputs.
pub(crate) fn random_graph(seed: u64) -> Arc<Graph> {
    let mut rng = Pcg32::seed_from_u64(seed);
    let mut g = ToyGraph::new("random");
    let mut values = vec![g.input("x", &[8, 4]), g.input("y", &[8, 4])];
    let w = g.constant("w", &[4, 4]);
    let b = g.constant("b", &[8, 4]);
    for i in 0..rng.random_range(3..14) {
        let name = format!("n{i}");
        // Mostly recent values, so that chains form.
        let back = rng.random_range(0..values.len().min(4));
        let x = values[values.len() - 1 - back];
        let other = values[rng.random_range(0..values.len())];
        let y = match rng.random_range(0..10) {
            0 => g.add(&name, Toy::Affine, &[x]),
            1 => g.add(&name, Toy::Sum, &[x, other]),
            2 => g.add(&name, Toy::Sum, &[x, b]),
            3..=5 => g.add(&name, Toy::Blur { top: 1, bottom: 1 }, &[x]),
            6 => g.add(&name, Toy::Product, &[x, w]),
            7 => {
                let flat = g.add(&name, Toy::View(vec![1, 32]), &[x]);
                let name = format!("{name}v");
                g.add(&name, Toy::View(vec![8, 4]), &[flat])
            }
            8 => g.add(&name, Toy::Flip, &[x]),
            _ => {
                let halves = g.add_all(&name, Toy::Halves, &[x]);
                let name = format!("{name}p");
                let two = g.add(&name, Toy::Sum, &[halves[0], halves[1]]);
                let flat = g.add(&format!("{name}f"), Toy::View(vec![1, 16]), &[two]);
                let wide = g.constant(&format!("{name}w"), &[16, 32]);
                let row = g.add(&format!("{name}m"), Toy::Product, &[flat, wide]);
                g.add(&format!("{name}b"), Toy::View(vec![8, 4]), &[row])
            }
        };
        values.push(y);
    }
    let last = values[values.len() - 1];
    let some = values[rng.random_range(0..values.len())];
    g.output(last).output(some).output(last).output(w).finish()
}

/// Inputs of a toy graph.
pub(crate) fn inputs(graph: &Graph, seed: u64) -> Vec<Tensor> {
    let mut rng = Pcg32::seed_from_u64(seed);
    graph
        .inputs
        .iter()
        .map(|&id| {
            let ty = &graph.value(id).ty;
            let data: Vec<f32> =
                (0..ty.len()).map(|_| f32::from(rng.random_range(0..100u8))).collect();
            Tensor::from_slice(ty.shape.clone(), &data)
        })
        .collect()
}

/// Outputs by evaluating node after node.
pub(crate) fn reference(graph: &Graph, inputs: &[Tensor]) -> Vec<Tensor> {
    let pool = Pool::single();
    let mut values: Vec<Option<Tensor>> =
        graph.values.iter().map(|v| v.constant.as_deref().cloned()).collect();
    for (&id, tensor) in graph.inputs.iter().zip(inputs) {
        values[id.index()] = Some(tensor.clone());
    }
    for node in &graph.nodes {
        let given: Vec<Option<&Tensor>> =
            node.inputs.iter().map(|id| id.and_then(|id| values[id.index()].as_ref())).collect();
        let made = crate::ops::evaluate(node.op.as_ref(), &given, &pool).unwrap();
        for (id, tensor) in node.outputs.iter().zip(made) {
            if let Some(id) = id {
                values[id.index()] = Some(tensor);
            }
        }
    }
    graph.outputs.iter().map(|id| values[id.index()].clone().unwrap()).collect()
}
