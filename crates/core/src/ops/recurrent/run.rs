//! Runs a recurrent layer: one product for the inputs of all steps, then a product of the state
//! for every step.

use sparoa_kernels::{
    activation::{Activation, Epilogue, Residual},
    gemm::{PackedB, gemm},
    math,
    pool::Pool,
};

use super::{Cell, Direction, Recurrent, Sizes, cells};
use crate::ops::{CpuKernel, KernelIo, OpError, Operands, Scratch};

/// Weights of one direction.
struct Packed {
    w: PackedB,
    /// All gates; for a GRU that resets first, update and reset gates.
    r: PackedB,
    /// The hidden gate of such a GRU.
    r_hidden: Option<PackedB>,
}

fn pack(op: &Recurrent, s: &Sizes, w: &[f32], r: &[f32]) -> Vec<Packed> {
    let rows = s.gates * s.hidden;
    let reset_first = matches!(op.cell, Cell::Gru { linear_before_reset: false });
    (0..s.directions)
        .map(|d| {
            let w = &w[d * rows * s.input..][..rows * s.input];
            let r = &r[d * rows * s.hidden..][..rows * s.hidden];
            let split = if reset_first { 2 * s.hidden } else { rows };
            let (first, last) = r.split_at(split * s.hidden);
            Packed {
                w: PackedB::new(s.input, rows, w, true),
                r: PackedB::new(s.hidden, split, first, true),
                r_hidden: reset_first.then(|| PackedB::new(s.hidden, s.hidden, last, true)),
            }
        })
        .collect()
}

pub(super) fn kernel(op: &Recurrent, sizes: Sizes, x: &Operands<'_>) -> Box<dyn CpuKernel> {
    let slice = |i: usize| x.constant(i).and_then(|t| t.as_slice::<f32>());
    let packed = slice(1).zip(slice(2)).map(|(w, r)| pack(op, &sizes, w, r));
    Box::new(RecurrentKernel { op: op.clone(), sizes, packed })
}

struct RecurrentKernel {
    op: Recurrent,
    sizes: Sizes,
    /// `None` when weights are computed at run time.
    packed: Option<Vec<Packed>>,
}

/// Buffers of one run, for one direction at a time.
struct Buffers<'a> {
    /// What the inputs contribute to the gates: rows in the order of x.
    inputs: &'a mut [f32],
    /// Gates of one step: batch x gates x hidden.
    gates: &'a mut [f32],
    /// What the state contributes, where it is needed apart.
    apart: &'a mut [f32],
    /// State, and LSTM's cell.
    h: &'a mut [f32],
    c: &'a mut [f32],
}

impl RecurrentKernel {
    /// Elements of each buffer, in the order of [`Buffers`].
    fn lens(&self) -> [usize; 5] {
        let s = &self.sizes;
        let (row, state) = (s.gates * s.hidden, s.batch * s.hidden);
        [s.steps * s.batch * row, s.batch * row, s.batch * row, state, state]
    }
}

impl CpuKernel for RecurrentKernel {
    fn scratch_bytes(&self, _threads: usize) -> usize {
        self.lens().into_iter().map(Scratch::bytes::<f32>).sum()
    }

    fn weight_bytes(&self) -> usize {
        let bytes =
            |p: &Packed| p.w.bytes() + p.r.bytes() + p.r_hidden.as_ref().map_or(0, PackedB::bytes);
        self.packed.iter().flatten().map(bytes).sum()
    }

    fn run(&self, io: &mut KernelIo<'_, '_>, pool: &Pool) -> Result<(), OpError> {
        let made;
        let packed = match &self.packed {
            Some(packed) => packed,
            None => {
                made = pack(&self.op, &self.sizes, io.input(1).slice(), io.input(2).slice());
                &made
            }
        };
        let s = self.sizes;
        if let Some(lengths) = io.get(4) {
            for &length in lengths.slice::<i32>() {
                if usize::try_from(length).is_ok_and(|l| l <= s.steps) {
                    continue;
                }
                return Err(OpError::Value(format!(
                    "sequence_lens holds {length}, x has {} steps",
                    s.steps
                )));
            }
        }
        for (d, packed) in packed.iter().enumerate() {
            let mut scratch = Scratch::new(&mut *io.scratch);
            let [inputs, gates, apart, h, c] = self.lens().map(|len| scratch.take::<f32>(len));
            let buffers = Buffers { inputs, gates, apart, h, c };
            let inputs = Inputs::new(io.inputs, d, &s);
            self.direction(d, packed, buffers, inputs, &mut *io.outputs, pool);
        }
        Ok(())
    }
}

/// Run-time inputs, of one direction where they differ.
struct Inputs<'a> {
    x: &'a [f32],
    bias: Option<&'a [f32]>,
    lengths: Option<&'a [i32]>,
    first: [Option<&'a [f32]>; 2],
    peepholes: Option<&'a [f32]>,
}

impl<'a> Inputs<'a> {
    fn new(inputs: &[Option<crate::tensor::TensorRef<'a>>], d: usize, s: &Sizes) -> Inputs<'a> {
        let get = |i: usize| inputs.get(i).copied().flatten();
        let part = |i: usize, len: usize| get(i).map(|t| &t.slice::<f32>()[d * len..][..len]);
        Inputs {
            x: get(0).map_or(&[], |x| x.slice()),
            bias: part(3, 2 * s.gates * s.hidden),
            lengths: get(4).map(|l| l.slice()),
            first: [5, 6].map(|i| get(i).map(|t| t.slice())),
            peepholes: part(7, 3 * s.hidden),
        }
    }
}

impl RecurrentKernel {
    /// Index of a row of the first and last states and cells.
    fn state_row(&self, d: usize, b: usize) -> usize {
        let s = &self.sizes;
        if self.op.batch_first { b * s.directions + d } else { d * s.batch + b }
    }

    fn direction(
        &self,
        d: usize,
        packed: &Packed,
        buffers: Buffers<'_>,
        inputs: Inputs<'_>,
        outputs: &mut [crate::tensor::TensorMut<'_>],
        pool: &Pool,
    ) {
        let s = self.sizes;
        let (hidden, row) = (s.hidden, s.gates * s.hidden);
        let Buffers { inputs: projected, gates, apart, h, c } = buffers;
        // The recurrent bias belongs to the state's part only where a reset comes in between.
        let rows = s.steps * s.batch;
        if rows > 0 {
            let bias = inputs.bias.map(|b| &b[..row]);
            gemm(rows, inputs.x, s.input, &packed.w, bias, &Epilogue::NONE, projected, pool);
        }
        for (state, first) in [&mut *h, &mut *c].into_iter().zip(inputs.first) {
            for b in 0..s.batch {
                let own = &mut state[b * hidden..][..hidden];
                match first {
                    None => own.fill(0.0),
                    Some(first) => {
                        own.copy_from_slice(&first[self.state_row(d, b) * hidden..][..hidden]);
                    }
                }
            }
        }
        let count = self.op.activations.len() / s.directions;
        let f = &self.op.activations[d * count..][..count];
        let backwards = self.op.direction == Direction::Reverse || d == 1;
        let length = |b: usize| inputs.lengths.map_or(s.steps, |l| l[b] as usize);
        for step in 0..s.steps {
            // Sequences that are over take part with any row; their result is not used.
            let time = |b: usize| {
                let time = if backwards { length(b).checked_sub(step + 1) } else { Some(step) };
                time.filter(|&t| t < length(b))
            };
            for b in 0..s.batch {
                let t = time(b).unwrap_or(0);
                let from = if self.op.batch_first { b * s.steps + t } else { t * s.batch + b };
                gates[b * row..][..row].copy_from_slice(&projected[from * row..][..row]);
            }
            let active = |b: usize| time(b).is_some();
            let recurrent_bias = inputs.bias.map(|b| &b[row..]);
            let step_of = Step { packed, bias: recurrent_bias, f, inputs: &inputs, pool };
            self.step(&step_of, gates, apart, h, c, active);
            let Some(all) = outputs.first_mut() else { continue };
            let all = all.slice_mut::<f32>();
            for b in 0..s.batch {
                // Steps beyond a sequence's end are zero.
                let t = time(b).unwrap_or(step);
                let to = if self.op.batch_first {
                    (b * s.steps + t) * s.directions + d
                } else {
                    (t * s.directions + d) * s.batch + b
                };
                let to = &mut all[to * hidden..][..hidden];
                if active(b) {
                    to.copy_from_slice(&h[b * hidden..][..hidden]);
                } else {
                    to.fill(0.0);
                }
            }
        }
        for (state, output) in [&*h, &*c].into_iter().zip(outputs.iter_mut().skip(1)) {
            let output = output.slice_mut::<f32>();
            for b in 0..s.batch {
                let to = self.state_row(d, b) * hidden;
                output[to..to + hidden].copy_from_slice(&state[b * hidden..][..hidden]);
            }
        }
    }

    /// One step of all sequences; `gates` hold the inputs' part.
    fn step(
        &self,
        step: &Step<'_>,
        gates: &mut [f32],
        apart: &mut [f32],
        h: &mut [f32],
        c: &mut [f32],
        active: impl Fn(usize) -> bool,
    ) {
        let s = self.sizes;
        let (hidden, row) = (s.hidden, s.gates * s.hidden);
        let (f, bound) = (step.f, self.op.clip);
        match self.op.cell {
            Cell::Gru { linear_before_reset } => {
                // The state's part of the gates: of all three, or of update and reset.
                let width = step.packed.r.n();
                let apart = &mut apart[..s.batch * width];
                let bias = step.bias.map(|b| &b[..width]);
                step.product(h, &step.packed.r, bias, None, apart);
                for b in 0..s.batch {
                    let (gates, apart) =
                        (&mut gates[b * row..][..row], &apart[b * width..][..width]);
                    for (g, a) in gates[..2 * hidden].iter_mut().zip(apart) {
                        *g += a;
                    }
                    let (zr, candidate) = gates.split_at_mut(2 * hidden);
                    cells::gru_gates(f, bound, zr);
                    let reset = &zr[hidden..];
                    if linear_before_reset {
                        for k in 0..hidden {
                            candidate[k] += reset[k] * apart[2 * hidden + k];
                        }
                    }
                }
                if let Some(r_hidden) = &step.packed.r_hidden {
                    let (reset_state, product) = apart.split_at_mut(s.batch * hidden);
                    for b in 0..s.batch {
                        let reset = &gates[b * row + hidden..][..hidden];
                        for k in 0..hidden {
                            reset_state[b * hidden + k] = reset[k] * h[b * hidden + k];
                        }
                    }
                    let bias = step.bias.map(|b| &b[2 * hidden..]);
                    let product = &mut product[..s.batch * hidden];
                    step.product(reset_state, r_hidden, bias, None, product);
                    for b in 0..s.batch {
                        let candidate = &mut gates[b * row + 2 * hidden..][..hidden];
                        for k in 0..hidden {
                            candidate[k] += product[b * hidden + k];
                        }
                    }
                }
                for b in (0..s.batch).filter(|&b| active(b)) {
                    let (zr, candidate) = gates[b * row..][..row].split_at_mut(2 * hidden);
                    let own = &mut h[b * hidden..][..hidden];
                    cells::gru_update(f, bound, &zr[..hidden], candidate, own);
                }
            }
            Cell::Lstm { .. } | Cell::Rnn => {
                step.product(h, &step.packed.r, step.bias, Some(gates), apart);
                for b in (0..s.batch).filter(|&b| active(b)) {
                    let gates = &mut apart[b * row..][..row];
                    let own = &mut h[b * hidden..][..hidden];
                    if let Cell::Lstm { input_forget } = self.op.cell {
                        let cell = &mut c[b * hidden..][..hidden];
                        let peepholes = step.inputs.peepholes;
                        cells::lstm(input_forget, f, bound, peepholes, gates, cell, own);
                    } else {
                        cells::clip(gates, bound);
                        math::activation(f[0], gates, own);
                    }
                }
            }
        }
    }
}

/// What one step reads.
struct Step<'a> {
    packed: &'a Packed,
    bias: Option<&'a [f32]>,
    f: &'a [Activation],
    inputs: &'a Inputs<'a>,
    pool: &'a Pool,
}

impl Step<'_> {
    /// y = state r + bias + more.
    fn product(
        &self,
        state: &[f32],
        r: &PackedB,
        bias: Option<&[f32]>,
        more: Option<&[f32]>,
        y: &mut [f32],
    ) {
        let residual = more.map_or(Residual::None, Residual::BeforeActivation);
        let epilogue = Epilogue { activation: Activation::None, residual };
        let batch = state.len() / r.k();
        if batch > 0 {
            gemm(batch, state, r.k(), r, bias, &epilogue, y, self.pool);
        }
    }
}
