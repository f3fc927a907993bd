//! If, Loop: operators with bodies. A body is a [`Model`] whose last inputs are the values that it
//! captures from outside; the node has them as its last inputs, in the order of its attribute
//! `captures`.

use std::{fmt, sync::Arc};

use sparoa_kernels::{Arithmetic, pool::Pool};

use super::{
    AttributeValue, Attributes, CpuKernel, Example, InputsExt, KernelIo, Op, OpError, OpSpec,
    Operand, Operands, elementwise, floats,
};
use crate::{
    ir::{Dim, Expansion, Model, ModelBuilder, ModelValueId, Prepared, interpret},
    tensor::{DType, Storage, Tensor, TensorRef, TensorType},
};

pub(super) const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "If",
        domain: "",
        since: 1,
        inputs: (1, i32::MAX as usize),
        outputs: (1, i32::MAX as usize),
        parse: |a| {
            let then_branch = body(a, "then_branch")?;
            let else_branch = body(a, "else_branch")?;
            let captures = a.strings("captures")?.unwrap_or_default();
            for branch in [&then_branch, &else_branch] {
                if branch.inputs.len() != captures.len() || branch.outputs.len() != a.outputs {
                    return Err(OpError::invalid(format!(
                        "a branch has {} inputs and {} outputs, the node {} captures and {} outputs",
                        branch.inputs.len(),
                        branch.outputs.len(),
                        captures.len(),
                        a.outputs
                    )));
                }
            }
            Ok(Arc::new(If { then_branch, else_branch, captures }))
        },
        examples: || {
            let graph = |m: Model| AttributeValue::Graph(Arc::new(m));
            let e = |name, condition: bool| {
                Example::new(name)
                    .attribute("captures", AttributeValue::Strings(vec!["x".to_owned()]))
                    .attribute("then_branch", graph(example_branch(elementwise::Unary::Neg)))
                    .attribute("else_branch", graph(example_branch(elementwise::Unary::Abs)))
                    .constant(Tensor::from_bools([], &[condition]))
                    .input(floats([2, 3], 1))
            };
            vec![e("then", true), e("else", false)]
        },
    },
    OpSpec {
        name: "Loop",
        domain: "",
        since: 1,
        inputs: (2, i32::MAX as usize),
        outputs: (1, i32::MAX as usize),
        parse: |a| {
            let body = body(a, "body")?;
            let captures = a.strings("captures")?.unwrap_or_default();
            let carried = body.inputs.len().checked_sub(2 + captures.len());
            let carried =
                carried.filter(|n| body.outputs.len() > *n && body.outputs.len() - 1 == a.outputs);
            let carried = carried.ok_or_else(|| {
                OpError::invalid(format!(
                    "the body has {} inputs and {} outputs, the node {} captures and {} outputs",
                    body.inputs.len(),
                    body.outputs.len(),
                    captures.len(),
                    a.outputs
                ))
            })?;
            Ok(Arc::new(Loop { body, carried, captures }))
        },
        examples: || {
            vec![
                Example::new("three doublings")
                    .attribute("body", AttributeValue::Graph(Arc::new(example_body())))
                    .constant(Tensor::scalar(3i64))
                    .omitted()
                    .constant(floats([2], 1))
                    .outputs(2),
            ]
        },
    },
];

/// More iterations than any real model asks for: a condition in a hostile file may never turn
/// false.
const MAX_ITERATIONS: i64 = 1 << 24;

fn body(a: &Attributes, name: &str) -> Result<Arc<Model>, OpError> {
    let graph = a.graph(name)?.ok_or_else(|| OpError::invalid(format!("{name} is missing")))?;
    graph.downcast().map_err(|_| OpError::invalid(format!("{name} is not an imported graph")))
}

fn example_branch(op: elementwise::Unary) -> Model {
    let mut b = ModelBuilder::new("branch");
    let x = b.input("x", DType::F32, vec![Dim::Unknown, Dim::Unknown]);
    let op = elementwise::Elementwise::new(elementwise::Expr::unary(op));
    let y = b.node("y", Arc::new(op), &[x]);
    b.output(y);
    b.finish()
}

/// Doubles its carried value and puts each one out.
fn example_body() -> Model {
    let mut b = ModelBuilder::new("body");
    b.input("i", DType::I64, vec![]);
    let condition = b.input("condition", DType::Bool, vec![]);
    let x = b.input("x", DType::F32, vec![Dim::Unknown]);
    let add = elementwise::Expr::binary(elementwise::Binary::Add);
    let doubled = b.node("doubled", Arc::new(elementwise::Elementwise::new(add)), &[x, x]);
    for output in [condition, doubled, doubled] {
        b.output(output);
    }
    b.finish()
}

/// Names of the nodes of a body with their operators, for `Debug`.
fn describe(model: &Model, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.debug_list().entries(model.nodes.iter().map(|n| &n.op)).finish()
}

/// One boolean.
fn condition(value: &Tensor) -> Result<bool, OpError> {
    if value.dtype() != DType::Bool || value.ty().len() != 1 {
        let ty = value.ty();
        return Err(OpError::invalid(format!("the condition must be one boolean, is {ty}")));
    }
    Ok(value.bytes()[0] != 0)
}

/// Runs one of two bodies.
#[derive(Clone)]
pub struct If {
    /// Runs when input 0 is true.
    pub then_branch: Arc<Model>,
    /// Runs when it is false.
    pub else_branch: Arc<Model>,
    /// Names of inputs 1.. in the model around it.
    pub captures: Vec<String>,
}

impl fmt::Debug for If {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("If(then: ")?;
        describe(&self.then_branch, f)?;
        f.write_str(", else: ")?;
        describe(&self.else_branch, f)?;
        f.write_str(")")
    }
}

impl If {
    fn branch(&self, condition: bool) -> &Arc<Model> {
        if condition { &self.then_branch } else { &self.else_branch }
    }

    /// Both branches made concrete for these inputs; an error for one that cannot be.
    fn prepare(&self, inputs: &[Option<Operand>]) -> [Result<Prepared, OpError>; 2] {
        let captures = inputs.get(1..).unwrap_or_default();
        let prepare = |name: &str, branch: &Model| {
            Prepared::types_only(branch, captures).map_err(|e| e.within(name))
        };
        [prepare("then_branch", &self.then_branch), prepare("else_branch", &self.else_branch)]
    }
}

impl Op for If {
    fn op_type(&self) -> &'static str {
        "If"
    }

    fn with_arithmetic(&self, arithmetic: Arithmetic) -> Option<Arc<dyn Op>> {
        let branch = |model: &Model| Arc::new(model.with_arithmetic(arithmetic));
        let (then_branch, else_branch) = (branch(&self.then_branch), branch(&self.else_branch));
        Some(Arc::new(If { then_branch, else_branch, captures: self.captures.clone() }))
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let flag = &inputs.required(0, "cond")?.ty;
        if flag.dtype != DType::Bool || flag.len() != 1 {
            return Err(OpError::invalid(format!("the condition must be one boolean, is {flag}")));
        }
        // A branch that cannot run at these shapes matters only when it is taken.
        match self.prepare(inputs) {
            [Ok(a), Ok(b)] if a.types() == b.types() => Ok(a.types().to_vec()),
            [Ok(_), Ok(_)] => Err(OpError::DataDependent { input: 0 }),
            [Err(OpError::DataDependent { .. }), _] | [_, Err(OpError::DataDependent { .. })] => {
                Err(OpError::DataDependent { input: 0 })
            }
            [Ok(only), Err(_)] | [Err(_), Ok(only)] => Ok(only.types().to_vec()),
            [Err(e), Err(_)] => Err(e),
        }
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        let flops = self.prepare(x.inputs).map(|b| b.map_or(0, |b| b.flops()));
        flops[0].max(flops[1])
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let branches = self.prepare(x.inputs).map(|branch| {
            let mut branch = branch?;
            if branch.types() != x.outputs {
                return Err(OpError::Value("the branch has other output types".to_owned()));
            }
            branch.prepare_kernels().map_err(|e| e.within("branch"))?;
            Ok(branch)
        });
        Ok(Box::new(IfKernel { branches }))
    }

    fn compute(
        &self,
        inputs: &[Option<&Tensor>],
        pool: &Pool,
    ) -> Option<Result<Vec<Tensor>, OpError>> {
        let run = || {
            let flag = inputs.first().copied().flatten();
            let flag = flag.ok_or_else(|| OpError::invalid("input 0 (cond) is missing"))?;
            let taken = condition(flag)?;
            let captures = captured(&inputs[1..])?;
            let name = if taken { "then_branch" } else { "else_branch" };
            interpret(self.branch(taken), &captures, pool).map_err(|e| e.within(name))
        };
        Some(run())
    }

    fn expand(&self, inputs: &[Option<Operand>]) -> Option<Expansion> {
        let value = inputs.optional(0)?.constant.as_ref()?;
        let model = self.branch(condition(value).ok()?).clone();
        Some(Expansion { model, inputs: (1..=self.captures.len()).collect() })
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        vec![
            ("then_branch", AttributeValue::Graph(self.then_branch.clone())),
            ("else_branch", AttributeValue::Graph(self.else_branch.clone())),
            ("captures", AttributeValue::Strings(self.captures.clone())),
        ]
    }
}

fn captured(inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let given = inputs.iter().map(|t| t.cloned());
    given.collect::<Option<_>>().ok_or_else(|| OpError::invalid("a captured input is missing"))
}

struct IfKernel {
    branches: [Result<Prepared, OpError>; 2],
}

impl CpuKernel for IfKernel {
    fn weight_bytes(&self) -> usize {
        self.branches.iter().flatten().map(Prepared::weight_bytes).sum()
    }

    fn run(&self, io: &mut KernelIo<'_, '_>, pool: &Pool) -> Result<(), OpError> {
        let taken = io.input(0).bytes.first().is_some_and(|&b| b != 0);
        let branch = self.branches[usize::from(!taken)].as_ref().map_err(Clone::clone)?;
        let captures = io.inputs[1..].iter().map(|t| t.map(to_tensor));
        let captures: Vec<Tensor> = captures.flatten().collect();
        let results = branch.run(&captures, pool).map_err(|e| e.within("branch"))?;
        for (result, target) in results.iter().zip(io.outputs.iter_mut()) {
            target.bytes.copy_from_slice(result.bytes());
        }
        Ok(())
    }
}

fn to_tensor(view: TensorRef<'_>) -> Tensor {
    Tensor::new(TensorType::new(view.dtype, view.shape), Storage::copy_from(view.bytes))
        .expect("a view has its type's length")
}

/// Runs a body again and again. Inputs: trip count, condition, carried values, captures; the
/// body's: iteration, condition, carried values, captures; the body's outputs: condition, carried
/// values, scan outputs, which the node stacks.
#[derive(Clone)]
pub struct Loop {
    /// The body.
    pub body: Arc<Model>,
    /// Number of carried values.
    pub carried: usize,
    /// Names of the last inputs in the model around it.
    pub captures: Vec<String>,
}

impl fmt::Debug for Loop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Loop(carried: {}, body: ", self.carried)?;
        describe(&self.body, f)?;
        f.write_str(")")
    }
}

impl Loop {
    fn run(&self, inputs: &[Option<&Tensor>], pool: &Pool) -> Result<Vec<Tensor>, OpError> {
        let optional = |i: usize| inputs.get(i).copied().flatten();
        let trips = match optional(0) {
            None => None,
            Some(m) => {
                let value = m.to_i64s().filter(|v| v.len() == 1 && m.dtype() == DType::I64);
                let value = value.ok_or_else(|| {
                    OpError::invalid(format!("the trip count must be one i64, is {}", m.ty()))
                })?;
                Some(value[0])
            }
        };
        let mut go_on = optional(1).map_or(Ok(true), condition)?;
        let mut state = captured(inputs.get(2..).unwrap_or_default())?;
        if state.len() != self.carried + self.captures.len() {
            return Err(OpError::invalid(format!(
                "{} values given for {} carried and {} captured ones",
                state.len(),
                self.carried,
                self.captures.len()
            )));
        }
        let captures = state.split_off(self.carried);
        let scans = self.body.outputs.len() - 1 - self.carried;
        let mut stacks: Vec<Stack> = (0..scans).map(|_| Stack::default()).collect();
        let mut iteration = 0;
        while go_on && trips.is_none_or(|t| iteration < t) {
            if iteration >= MAX_ITERATIONS {
                return Err(OpError::Value(format!("more than {MAX_ITERATIONS} iterations")));
            }
            let mut arguments = vec![Tensor::scalar(iteration), Tensor::from_bools([], &[true])];
            arguments.append(&mut state);
            arguments.extend(captures.iter().cloned());
            let mut results =
                interpret(&self.body, &arguments, pool).map_err(|e| e.within("body"))?;
            let scanned = results.split_off(1 + self.carried);
            for (stack, slice) in stacks.iter_mut().zip(&scanned) {
                stack.push(slice)?;
            }
            state = results.split_off(1);
            go_on = condition(&results[0])?;
            iteration += 1;
        }
        for (stack, id) in stacks.into_iter().zip(&self.body.outputs[1 + self.carried..]) {
            state.push(match stack.ty.is_some() {
                true => stack.finish()?,
                false => self.empty_stack(*id, &state, &captures)?,
            });
        }
        Ok(state)
    }

    /// The scan output of a loop that never ran.
    fn empty_stack(
        &self,
        id: ModelValueId,
        state: &[Tensor],
        captures: &[Tensor],
    ) -> Result<Tensor, OpError> {
        let first = [Tensor::scalar(0i64), Tensor::from_bools([], &[true])];
        let arguments: Vec<Option<Operand>> = first
            .iter()
            .chain(state.iter().take(self.carried))
            .chain(captures)
            .map(|t| Some(Operand::dynamic(t.ty().clone())))
            .collect();
        let body = Prepared::types_only(&self.body, &arguments).map_err(|e| e.within("body"))?;
        let at = self.body.outputs.iter().position(|o| *o == id).unwrap_or(0);
        let mut ty = body.types()[at].clone();
        ty.shape.insert(0, 0);
        Ok(Tensor::zeros(ty))
    }
}

/// Slices of one type, one after the other.
#[derive(Default)]
struct Stack {
    ty: Option<TensorType>,
    bytes: Vec<u8>,
    count: usize,
}

impl Stack {
    fn push(&mut self, slice: &Tensor) -> Result<(), OpError> {
        let ty = self.ty.get_or_insert_with(|| slice.ty().clone());
        if ty != slice.ty() {
            return Err(OpError::Value(format!(
                "a scan output changes from {ty} to {}",
                slice.ty()
            )));
        }
        self.bytes.extend_from_slice(slice.bytes());
        self.count += 1;
        Ok(())
    }

    fn finish(self) -> Result<Tensor, OpError> {
        let stacked = self.ty.and_then(|mut ty| {
            ty.shape.insert(0, self.count);
            Tensor::new(ty, Storage::copy_from(&self.bytes))
        });
        stacked.ok_or_else(|| OpError::Value("a scan output is too large".to_owned()))
    }
}

impl Op for Loop {
    fn op_type(&self) -> &'static str {
        "Loop"
    }

    fn with_arithmetic(&self, arithmetic: Arithmetic) -> Option<Arc<dyn Op>> {
        let body = Arc::new(self.body.with_arithmetic(arithmetic));
        Some(Arc::new(Loop { body, ..self.clone() }))
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        if let Some(i) =
            inputs.iter().position(|o| o.as_ref().is_some_and(|o| o.constant.is_none()))
        {
            return Err(OpError::DataDependent { input: i });
        }
        let values: Vec<Option<&Tensor>> =
            inputs.iter().map(|o| o.as_ref().and_then(|o| o.constant.as_deref())).collect();
        Ok(self.run(&values, &Pool::single())?.iter().map(|t| t.ty().clone()).collect())
    }

    fn flops(&self, _: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, _: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let op = self.clone();
        Ok(super::kernel(move |io, pool| {
            let inputs: Vec<_> = io.inputs.iter().map(|t| t.map(to_tensor)).collect();
            let inputs: Vec<_> = inputs.iter().map(Option::as_ref).collect();
            for (result, target) in op.run(&inputs, pool)?.iter().zip(io.outputs.iter_mut()) {
                // Lengths agree: `infer` accepts the node only with constant inputs.
                target.bytes.copy_from_slice(result.bytes());
            }
            Ok(())
        }))
    }

    fn compute(
        &self,
        inputs: &[Option<&Tensor>],
        pool: &Pool,
    ) -> Option<Result<Vec<Tensor>, OpError>> {
        Some(self.run(inputs, pool))
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        vec![
            ("body", AttributeValue::Graph(self.body.clone())),
            ("captures", AttributeValue::Strings(self.captures.clone())),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::InputSpec,
        ops::{elementwise::Unary, evaluate, reshape::Unsqueeze},
    };

    fn model(build: impl FnOnce(&mut ModelBuilder, ModelValueId) -> ModelValueId) -> Arc<Model> {
        let mut b = ModelBuilder::new("branch");
        let x = b.value("x");
        let spec = InputSpec { id: x, name: "x".to_owned(), dtype: DType::F32, dims: None };
        b.model_mut().inputs.push(spec);
        let y = build(&mut b, x);
        b.output(y);
        Arc::new(b.finish())
    }

    fn unary(op: Unary) -> Arc<Model> {
        let op = elementwise::Elementwise::new(elementwise::Expr::unary(op));
        model(|b, x| b.node("y", Arc::new(op), &[x]))
    }

    fn branches(then_branch: Arc<Model>, else_branch: Arc<Model>) -> If {
        If { then_branch, else_branch, captures: vec!["x".to_owned()] }
    }

    fn dynamic() -> Vec<Option<Operand>> {
        vec![
            Some(Operand::dynamic(TensorType::new(DType::Bool, []))),
            Some(Operand::dynamic(TensorType::f32([2]))),
        ]
    }

    #[test]
    fn branches_of_one_type_run_prepared() {
        let op = branches(unary(Unary::Neg), unary(Unary::Abs));
        let inputs = dynamic();
        let outputs = op.infer(&inputs).unwrap();
        assert_eq!(outputs, [TensorType::f32([2])]);
        let kernel = op.cpu(&Operands { inputs: &inputs, outputs: &outputs }).unwrap();
        let x = Tensor::from_slice([2], &[1.0f32, -2.0]);
        for (flag, expected) in [(true, [-1.0f32, 2.0]), (false, [1.0, 2.0])] {
            let flag = Tensor::from_bools([], &[flag]);
            let mut y = Tensor::zeros(outputs[0].clone());
            let inputs = [Some(flag.view()), Some(x.view())];
            let (outputs, scratch) = (&mut [y.view_mut()], &mut []);
            kernel
                .run(&mut KernelIo { inputs: &inputs, outputs, scratch }, &Pool::single())
                .unwrap();
            assert_eq!(y.as_slice::<f32>().unwrap(), expected);
            let y = evaluate(&op, &[Some(&flag), Some(&x)], &Pool::single()).unwrap();
            assert_eq!(y[0].as_slice::<f32>().unwrap(), expected);
        }
    }

    #[test]
    fn branches_of_two_types_depend_on_data() {
        let longer = model(|b, x| b.node("y", Arc::new(Unsqueeze { axes: Some(vec![0]) }), &[x]));
        let op = branches(unary(Unary::Neg), longer);
        assert_eq!(op.infer(&dynamic()), Err(OpError::DataDependent { input: 0 }));
        let flag = Operand::constant(Arc::new(Tensor::from_bools([1], &[false])));
        let expansion = op.expand(&[Some(flag), dynamic().remove(1)]).unwrap();
        assert_eq!(expansion.inputs, [1]);
        assert!(Arc::ptr_eq(&expansion.model, &op.else_branch));
    }

    #[test]
    fn a_branch_that_cannot_run_is_an_error_when_taken() {
        let impossible =
            model(|b, x| b.node("y", Arc::new(Unsqueeze { axes: Some(vec![7]) }), &[x]));
        let op = branches(unary(Unary::Neg), impossible);
        let inputs = dynamic();
        let outputs = op.infer(&inputs).unwrap();
        let kernel = op.cpu(&Operands { inputs: &inputs, outputs: &outputs }).unwrap();
        let x = Tensor::from_slice([2], &[1.0f32, -2.0]);
        for taken in [true, false] {
            let flag = Tensor::from_bools([], &[taken]);
            let mut y = Tensor::zeros(outputs[0].clone());
            let inputs = [Some(flag.view()), Some(x.view())];
            let (outputs, scratch) = (&mut [y.view_mut()], &mut []);
            let mut io = KernelIo { inputs: &inputs, outputs, scratch };
            assert_eq!(kernel.run(&mut io, &Pool::single()).is_ok(), taken);
        }
    }

    #[test]
    fn loops_carry_and_stack() {
        let op = Loop { body: Arc::new(example_body()), carried: 1, captures: Vec::new() };
        let x = Tensor::from_slice([2], &[1.0f32, 3.0]);
        let run = |trips: i64| {
            let trips = Tensor::scalar(trips);
            evaluate(&op, &[Some(&trips), None, Some(&x)], &Pool::single()).unwrap()
        };
        let y = run(3);
        assert_eq!(y[0], Tensor::from_slice([2], &[8.0f32, 24.0]));
        assert_eq!(y[1], Tensor::from_slice([3, 2], &[2.0f32, 6.0, 4.0, 12.0, 8.0, 24.0]));
        let y = run(0);
        assert_eq!((&y[0], y[1].shape()), (&x, &[0, 2][..]));
        let inputs = [None, None, Some(Operand::dynamic(TensorType::f32([2])))];
        assert_eq!(op.infer(&inputs), Err(OpError::DataDependent { input: 2 }));
    }
}
