//! LSTM, GRU and RNN: forward, reverse and bidirectional.

mod cells;
mod run;

use std::sync::Arc;

use sparoa_kernels::activation::Activation;

use super::{
    AttributeValue, Attributes, CpuKernel, Example, InputsExt, KernelClass, Op, OpError, OpSpec,
    Operand, Operands, conv::same_dtype, floats,
};
use crate::tensor::{DType, Tensor, TensorType};
pub use cells::Cell;

const LSTM: OpSpec = OpSpec {
    name: "LSTM",
    domain: "",
    since: 7,
    inputs: (3, 8),
    outputs: (0, 3),
    parse: |a| {
        let input_forget = a.flag("input_forget", false)?;
        Recurrent::parse(a, Cell::Lstm { input_forget })
    },
    examples: lstm_examples,
};

pub(super) const SPECS: &[OpSpec] = &[
    LSTM,
    OpSpec {
        name: "GRU",
        inputs: (3, 6),
        outputs: (0, 2),
        parse: |a| {
            let linear_before_reset = a.flag("linear_before_reset", false)?;
            Recurrent::parse(a, Cell::Gru { linear_before_reset })
        },
        examples: gru_examples,
        ..LSTM
    },
    OpSpec {
        name: "RNN",
        inputs: (3, 6),
        outputs: (0, 2),
        parse: |a| Recurrent::parse(a, Cell::Rnn),
        examples: rnn_examples,
        ..LSTM
    },
];

/// Which way time runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the first step to the last.
    #[default]
    Forward,
    /// From the last step to the first.
    Reverse,
    /// Both, with weights of their own.
    Bidirectional,
}

impl Direction {
    fn count(self) -> usize {
        if self == Direction::Bidirectional { 2 } else { 1 }
    }

    fn name(self) -> &'static str {
        match self {
            Direction::Forward => "forward",
            Direction::Reverse => "reverse",
            Direction::Bidirectional => "bidirectional",
        }
    }
}

/// A recurrent layer. Inputs: x [steps, batch, elements], w [directions, gates * hidden,
/// elements], r [directions, gates * hidden, hidden], optional bias [directions, 2 * gates *
/// hidden], lengths [batch] (i32), first state [directions, batch, hidden]; for LSTM also first
/// cell and peepholes [directions, 3 * hidden]. Outputs: all states [steps, directions, batch,
/// hidden], last state, for LSTM last cell. With `batch_first`, batch is the first dimension of
/// x, of the states and of all outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Recurrent {
    /// What a step computes.
    pub cell: Cell,
    /// Elements of the state.
    pub hidden: Option<usize>,
    /// Which way time runs.
    pub direction: Direction,
    /// Activations, as many per direction as the cell needs.
    pub activations: Vec<Activation>,
    /// Bound of the gates' magnitude before their activation.
    pub clip: Option<f32>,
    /// Batch before time.
    pub batch_first: bool,
    /// Number of outputs.
    pub outputs: usize,
}

/// Sizes of a recurrent layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub steps: usize,
    pub batch: usize,
    pub input: usize,
    pub hidden: usize,
    pub gates: usize,
    pub directions: usize,
}

impl Recurrent {
    fn parse(attributes: &Attributes, cell: Cell) -> Result<Arc<dyn Op>, OpError> {
        let direction = match attributes.string("direction")?.as_deref() {
            None | Some("forward") => Direction::Forward,
            Some("reverse") => Direction::Reverse,
            Some("bidirectional") => Direction::Bidirectional,
            Some(other) => {
                return Err(OpError::invalid(format!(
                    "attribute direction is '{other}', must be forward, reverse or bidirectional"
                )));
            }
        };
        let names = attributes.strings("activations")?.unwrap_or_default();
        let alphas = attributes.floats("activation_alpha")?.unwrap_or_default();
        let betas = attributes.floats("activation_beta")?.unwrap_or_default();
        let activations = if names.is_empty() {
            cell.default_activations().repeat(direction.count())
        } else {
            cells::activations(&names, &alphas, &betas)?
        };
        let wanted = cell.default_activations().len() * direction.count();
        if activations.len() != wanted {
            return Err(OpError::invalid(format!(
                "attribute activations has {} names, must have {wanted}",
                activations.len()
            )));
        }
        let hidden = attributes.int("hidden_size")?;
        let hidden = hidden
            .map(|h| {
                usize::try_from(h).ok().filter(|&h| h > 0).ok_or_else(|| {
                    OpError::invalid(format!("attribute hidden_size is {h}, must be 1 or more"))
                })
            })
            .transpose()?;
        Ok(Arc::new(Recurrent {
            cell,
            hidden,
            direction,
            activations,
            clip: attributes.float("clip")?,
            batch_first: attributes.flag("layout", false)?,
            outputs: attributes.outputs,
        }))
    }

    fn sizes(&self, inputs: &[Option<Operand>]) -> Result<Sizes, OpError> {
        let x = inputs.required(0, "X")?;
        let (w, r) = (inputs.required(1, "W")?, inputs.required(2, "R")?);
        same_dtype(x, w, "W")?;
        same_dtype(x, r, "R")?;
        let (&[first, second, input], &[directions, rows, hidden]) = (x.shape(), r.shape()) else {
            return Err(OpError::invalid(format!(
                "X has shape {:?} and R {:?}, both need three dimensions",
                x.shape(),
                r.shape()
            )));
        };
        let (steps, batch) = if self.batch_first { (second, first) } else { (first, second) };
        let gates = self.cell.gates();
        let sizes = Sizes { steps, batch, input, hidden, gates, directions };
        if directions != self.direction.count() || hidden == 0 || rows != gates * hidden {
            return Err(OpError::invalid(format!(
                "R has shape {:?}, must be [{}, {gates} * hidden_size, hidden_size]",
                r.shape(),
                self.direction.count()
            )));
        }
        if self.hidden.is_some_and(|h| h != hidden) {
            return Err(OpError::invalid(format!(
                "attribute hidden_size is {}, R has {hidden}",
                self.hidden.unwrap_or(0)
            )));
        }
        let state = if self.batch_first {
            [batch, directions, hidden]
        } else {
            [directions, batch, hidden]
        };
        let optional: [(usize, &str, &[usize]); 6] = [
            (1, "W", &[directions, rows, input]),
            (3, "B", &[directions, 2 * rows]),
            (4, "sequence_lens", &[batch]),
            (5, "initial_h", &state),
            (6, "initial_c", &state),
            (7, "P", &[directions, 3 * hidden]),
        ];
        for (i, name, shape) in optional {
            let Some(operand) = inputs.optional(i) else { continue };
            if operand.shape() != shape {
                return Err(OpError::invalid(format!(
                    "input {name} has shape {:?}, must be {shape:?}",
                    operand.shape()
                )));
            }
            if i == 4 && operand.ty.dtype != DType::I32 {
                return Err(OpError::invalid(format!(
                    "input sequence_lens has element type {}, must be i32",
                    operand.ty.dtype
                )));
            }
            if i != 4 {
                same_dtype(x, operand, name)?;
            }
        }
        Ok(sizes)
    }
}

impl Op for Recurrent {
    fn op_type(&self) -> &'static str {
        match self.cell {
            Cell::Lstm { .. } => "LSTM",
            Cell::Gru { .. } => "GRU",
            Cell::Rnn => "RNN",
        }
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let Sizes { steps, batch, hidden, directions, .. } = self.sizes(inputs)?;
        let dtype = inputs.required(0, "X")?.ty.dtype;
        let (all, last) = if self.batch_first {
            (vec![batch, steps, directions, hidden], vec![batch, directions, hidden])
        } else {
            (vec![steps, directions, batch, hidden], vec![directions, batch, hidden])
        };
        let mut types = vec![
            TensorType::new(dtype, all),
            TensorType::new(dtype, last.clone()),
            TensorType::new(dtype, last),
        ];
        types.truncate(self.outputs);
        Ok(types)
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        let Ok(s) = self.sizes(x.inputs) else { return 0 };
        [s.steps, s.batch, s.directions, s.gates, s.hidden, s.input + s.hidden]
            .iter()
            .fold(2u64, |n, &d| n.saturating_mul(d as u64))
    }

    fn class(&self, _: &Operands<'_>) -> KernelClass {
        KernelClass::Matmul
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let dtype = x.input(0).ty.dtype;
        if dtype != DType::F32 {
            return Err(OpError::dtype(dtype, &[DType::F32]));
        }
        Ok(run::kernel(self, self.sizes(x.inputs)?, x))
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let (names, alphas, betas) = cells::activation_attributes(&self.activations);
        let mut list: Vec<(&'static str, AttributeValue)> = vec![
            ("direction", self.direction.name().into()),
            ("activations", AttributeValue::Strings(names)),
            ("layout", self.batch_first.into()),
        ];
        if !alphas.is_empty() {
            list.push(("activation_alpha", alphas.into()));
        }
        if !betas.is_empty() {
            list.push(("activation_beta", betas.into()));
        }
        if let Some(hidden) = self.hidden {
            list.push(("hidden_size", i64::try_from(hidden).unwrap_or(i64::MAX).into()));
        }
        list.extend(self.clip.map(|clip| ("clip", clip.into())));
        match self.cell {
            Cell::Lstm { input_forget } => list.push(("input_forget", input_forget.into())),
            Cell::Gru { linear_before_reset } => {
                list.push(("linear_before_reset", linear_before_reset.into()));
            }
            Cell::Rnn => {}
        }
        list
    }
}

fn lstm_examples() -> Vec<Example> {
    let (hidden, input) = (3, 2);
    vec![
        Example::new("forward, all outputs")
            .attribute("hidden_size", 3i64)
            .input(floats([4, 2, input], 1))
            .constant(floats([1, 4 * hidden, input], 2))
            .constant(floats([1, 4 * hidden, hidden], 3))
            .constant(floats([1, 8 * hidden], 4))
            .omitted()
            .input(floats([1, 2, hidden], 5))
            .input(floats([1, 2, hidden], 6))
            .outputs(3),
        Example::new("bidirectional, lengths, peepholes")
            .attribute("hidden_size", 3i64)
            .attribute("direction", "bidirectional")
            .input(floats([4, 2, input], 1))
            .constant(floats([2, 4 * hidden, input], 2))
            .constant(floats([2, 4 * hidden, hidden], 3))
            .omitted()
            .input(Tensor::from_slice([2], &[4i32, 2]))
            .omitted()
            .omitted()
            .constant(floats([2, 3 * hidden], 7))
            .outputs(3),
        Example::new("batch first, clipped")
            .attribute("layout", 1i64)
            .attribute("clip", 0.5f32)
            .input(floats([2, 3, input], 1))
            .constant(floats([1, 4 * hidden, input], 2))
            .constant(floats([1, 4 * hidden, hidden], 3))
            .outputs(2),
    ]
}

fn gru_examples() -> Vec<Example> {
    let gru = |name, before: i64| {
        Example::new(name)
            .attribute("linear_before_reset", before)
            .input(floats([3, 2, 4], 1))
            .constant(floats([1, 9, 4], 2))
            .constant(floats([1, 9, 3], 3))
            .constant(floats([1, 18], 4))
            .outputs(2)
    };
    vec![
        gru("reset before the product", 0),
        gru("reset after the product", 1).attribute("direction", "reverse"),
    ]
}

fn rnn_examples() -> Vec<Example> {
    vec![
        Example::new("reverse, lengths, ReLU")
            .attribute("direction", "reverse")
            .attribute("activations", AttributeValue::Strings(vec!["Relu".to_owned()]))
            .input(floats([3, 2, 4], 1))
            .constant(floats([1, 3, 4], 2))
            .constant(floats([1, 3, 3], 3))
            .constant(floats([1, 6], 4))
            .input(Tensor::from_slice([2], &[1i32, 3]))
            .outputs(2),
        Example::new("weights at run time")
            .input(floats([2, 1, 2], 1))
            .input(floats([1, 3, 2], 2))
            .input(floats([1, 3, 3], 3)),
    ]
}
