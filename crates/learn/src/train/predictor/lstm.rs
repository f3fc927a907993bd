//! The bidirectional LSTM of a batch and its derivatives, by hand.
//!
//! Through the graph, every step would slice the whole sequence and its gradient would fill a
//! sequence of zeros: quadratic in the length. By hand, back-propagation through time (Werbos 1990)
//! is one small product per step and a few large ones at the end. Padding resets the state to zero,
//! so that the backward direction starts at each sequence's own last operator.

use rand::Rng;
use sparoa_kernels::activation::Residual;
use sparoa_kernels::gemm::{PackedB, gemm};
use sparoa_kernels::math::activation_in_place;
use sparoa_kernels::{Activation, Epilogue, Pool};

use crate::train::parameters::Parameters;

const DIRECTIONS: [&str; 2] = ["forward", "backward"];

/// Fresh parameters; gates are input, forget, output, candidate. The forget gates start open
/// (Jozefowicz et al. 2015).
pub(super) fn parameters(p: &mut Parameters, inputs: usize, hidden: usize, rng: &mut dyn Rng) {
    for direction in DIRECTIONS {
        p.push_dense(&format!("lstm.{direction}.input"), inputs, 4 * hidden, rng);
        let bias = p.list_mut().last_mut().expect("a dense layer ends with its bias");
        bias.value[hidden..2 * hidden].iter_mut().for_each(|b| *b += 1.0);
        // Of a dense layer, only the matrix: the input's bias serves both.
        let mut recurrent = Parameters::default();
        recurrent.push_dense("r", hidden, 4 * hidden, rng);
        let value = recurrent.list()[0].value.clone();
        let name = format!("lstm.{direction}.recurrent.weight");
        p.push(&name, &[hidden, 4 * hidden], value);
    }
}

fn value<'a>(p: &'a Parameters, name: &str) -> (&'a [f32], &'a [usize]) {
    let found = p.list().iter().find(|p| p.name == name).expect("the net has the parameter");
    (&found.value, &found.shape)
}

/// What a direction did, time-major: everything is [steps, rows, ...].
struct Pass {
    /// Activated gates.
    gates: Vec<f32>,
    cells: Vec<f32>,
    /// tanh of the cells before padding is reset.
    squashed: Vec<f32>,
    states: Vec<f32>,
}

/// The forward pass of a batch, kept for the backward pass.
pub(super) struct Tape {
    rows: usize,
    steps: usize,
    hidden: usize,
    /// Inputs, time-major.
    inputs: Vec<f32>,
    /// Time-major.
    mask: Vec<f32>,
    passes: [Pass; 2],
}

/// Gradients of the inputs, [rows, steps, inputs], and of the parameters by name.
pub(super) struct Back {
    pub(super) inputs: Vec<f32>,
    pub(super) parameters: Vec<(String, Vec<f32>)>,
}

/// Runs both directions over inputs [rows, steps, inputs] with a mask [rows, steps].
pub(super) fn forward(p: &Parameters, x: &[f32], rows: usize, steps: usize, mask: &[f32]) -> Tape {
    let inputs = swapped(x, rows, steps);
    let mask = swapped(mask, rows, steps);
    let passes = DIRECTIONS.map(|d| pass(p, d, &inputs, rows, steps, &mask));
    let (_, shape) = value(p, "lstm.forward.recurrent.weight");
    Tape { rows, steps, hidden: shape[0], inputs, mask, passes }
}

/// The steps in the order a direction takes them.
fn order(direction: &str, steps: usize) -> Vec<usize> {
    if direction == DIRECTIONS[1] { (0..steps).rev().collect() } else { (0..steps).collect() }
}

fn pass(
    p: &Parameters,
    direction: &str,
    inputs: &[f32],
    rows: usize,
    steps: usize,
    mask: &[f32],
) -> Pass {
    let pool = Pool::single();
    let (weight, shape) = value(p, &format!("lstm.{direction}.input.weight"));
    let (bias, _) = value(p, &format!("lstm.{direction}.input.bias"));
    let (k, width) = (shape[0], shape[1]);
    let n = width / 4;
    let mut given = vec![0.0; steps * rows * width];
    let input = PackedB::new(k, width, weight, false);
    gemm(steps * rows, inputs, k, &input, Some(bias), &Epilogue::NONE, &mut given, &pool);
    let (recurrent, _) = value(p, &format!("lstm.{direction}.recurrent.weight"));
    let recurrent = PackedB::new(n, width, recurrent, false);
    let blank = || vec![0.0; steps * rows * n];
    let mut pass =
        Pass { gates: vec![0.0; given.len()], cells: blank(), squashed: blank(), states: blank() };
    let (mut state, mut cell) = (vec![0.0; rows * n], vec![0.0; rows * n]);
    for step in order(direction, steps) {
        let wide = step * rows * width..(step + 1) * rows * width;
        let narrow = step * rows * n..(step + 1) * rows * n;
        let gates = &mut pass.gates[wide.clone()];
        let residual = Residual::BeforeActivation(&given[wide]);
        let add = Epilogue { activation: Activation::None, residual };
        gemm(rows, &state, n, &recurrent, None, &add, gates, &pool);
        for gates in gates.chunks_exact_mut(width) {
            activation_in_place(Activation::Sigmoid, &mut gates[..3 * n]);
            activation_in_place(Activation::Tanh, &mut gates[3 * n..]);
        }
        for row in 0..rows {
            let gates = &gates[row * width..(row + 1) * width];
            for (j, cell) in cell[row * n..(row + 1) * n].iter_mut().enumerate() {
                *cell = gates[n + j] * *cell + gates[j] * gates[3 * n + j];
            }
        }
        let squashed = &mut pass.squashed[narrow.clone()];
        squashed.copy_from_slice(&cell);
        activation_in_place(Activation::Tanh, squashed);
        for row in 0..rows {
            let real = mask[step * rows + row];
            for j in row * n..(row + 1) * n {
                let output = gates[row * width + 2 * n + j - row * n];
                state[j] = real * output * squashed[j];
                cell[j] *= real;
            }
        }
        pass.states[narrow.clone()].copy_from_slice(&state);
        pass.cells[narrow].copy_from_slice(&cell);
    }
    pass
}

impl Tape {
    /// The states, [rows, steps, 2 hidden], both directions side by side.
    pub(super) fn states(&self) -> Vec<f32> {
        let n = self.hidden;
        let [a, b] = [0, 1].map(|i| self.passes[i].states.chunks_exact(n));
        let both: Vec<f32> = a.zip(b).flat_map(|(a, b)| a.iter().chain(b)).copied().collect();
        swapped(&both, self.steps, self.rows)
    }
}

/// The gradients for `wanted`, those of [`Tape::states`].
pub(super) fn backward(p: &Parameters, tape: &Tape, wanted: &[f32]) -> Back {
    let n = tape.hidden;
    let wanted = swapped(wanted, tape.rows, tape.steps);
    let mut parameters = Vec::new();
    let mut inputs = vec![0.0; tape.inputs.len()];
    for (i, direction) in DIRECTIONS.into_iter().enumerate() {
        let own: Vec<f32> =
            wanted.chunks_exact(2 * n).flat_map(|r| &r[i * n..(i + 1) * n]).copied().collect();
        let gates = through_time(p, direction, tape, &tape.passes[i], &own);
        direction_gradients(
            p,
            direction,
            tape,
            &tape.passes[i],
            &gates,
            &mut inputs,
            &mut parameters,
        );
    }
    Back { inputs: swapped(&inputs, tape.steps, tape.rows), parameters }
}

/// The gradients of the gates before activation, [steps, rows, 4 hidden].
fn through_time(
    p: &Parameters,
    direction: &str,
    tape: &Tape,
    pass: &Pass,
    wanted: &[f32],
) -> Vec<f32> {
    let pool = Pool::single();
    let (rows, n, width) = (tape.rows, tape.hidden, 4 * tape.hidden);
    let (recurrent, _) = value(p, &format!("lstm.{direction}.recurrent.weight"));
    let transposed = PackedB::new(width, n, recurrent, true);
    let mut gradients = vec![0.0; tape.steps * rows * width];
    let (mut state, mut cell) = (vec![0.0; rows * n], vec![0.0; rows * n]);
    let order = order(direction, tape.steps);
    for (i, &step) in order.iter().enumerate().rev() {
        let before = (i > 0).then(|| order[i - 1] * rows * n);
        for row in 0..rows {
            let real = tape.mask[step * rows + row];
            let gates = &pass.gates[(step * rows + row) * width..][..width];
            let out = &mut gradients[(step * rows + row) * width..][..width];
            for j in 0..n {
                let (at, local) = ((step * rows + row) * n + j, row * n + j);
                let (input, forget, output, candidate) =
                    (gates[j], gates[n + j], gates[2 * n + j], gates[3 * n + j]);
                let squashed = pass.squashed[at];
                let d_state = real * (wanted[at] + state[local]);
                let d_cell = real * cell[local] + d_state * output * (1.0 - squashed * squashed);
                let previous = before.map_or(0.0, |b| pass.cells[b + local]);
                out[j] = d_cell * candidate * input * (1.0 - input);
                out[n + j] = d_cell * previous * forget * (1.0 - forget);
                out[2 * n + j] = d_state * squashed * output * (1.0 - output);
                out[3 * n + j] = d_cell * input * (1.0 - candidate * candidate);
                cell[local] = d_cell * forget;
            }
        }
        let gates = &gradients[step * rows * width..(step + 1) * rows * width];
        gemm(rows, gates, width, &transposed, None, &Epilogue::NONE, &mut state, &pool);
    }
    gradients
}

/// Adds a direction's share to the inputs' gradients and lists its parameters' gradients.
fn direction_gradients(
    p: &Parameters,
    direction: &str,
    tape: &Tape,
    pass: &Pass,
    gates: &[f32],
    inputs: &mut [f32],
    parameters: &mut Vec<(String, Vec<f32>)>,
) {
    let pool = Pool::single();
    let (rows, n, width) = (tape.rows, tape.hidden, 4 * tape.hidden);
    let total = tape.steps * rows;
    let name = |part: &str| format!("lstm.{direction}.{part}");
    let (weight, shape) = value(p, &name("input.weight"));
    let k = shape[0];
    let transposed = PackedB::new(width, k, weight, true);
    let mut own = vec![0.0; inputs.len()];
    gemm(total, gates, width, &transposed, None, &Epilogue::NONE, &mut own, &pool);
    inputs.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
    let packed = PackedB::new(total, width, gates, false);
    let outer = |left: &[f32], columns: usize| {
        let mut product = vec![0.0; columns * width];
        let left = transpose(left, total, columns);
        gemm(columns, &left, total, &packed, None, &Epilogue::NONE, &mut product, &pool);
        product
    };
    parameters.push((name("input.weight"), outer(&tape.inputs, k)));
    let mut bias = vec![0.0; width];
    for gates in gates.chunks_exact(width) {
        bias.iter_mut().zip(gates).for_each(|(sum, g)| *sum += g);
    }
    parameters.push((name("input.bias"), bias));
    // The state before each step; zeros before the first.
    let mut before = vec![0.0; total * n];
    let order = order(direction, tape.steps);
    for pair in order.windows(2) {
        let from = pair[0] * rows * n..(pair[0] + 1) * rows * n;
        before[pair[1] * rows * n..(pair[1] + 1) * rows * n].copy_from_slice(&pass.states[from]);
    }
    parameters.push((name("recurrent.weight"), outer(&before, n)));
}

/// [a, b, width] to [b, a, width].
fn swapped(x: &[f32], a: usize, b: usize) -> Vec<f32> {
    let width = x.len() / (a * b);
    let rows = (0..b).flat_map(|j| (0..a).map(move |i| i * b + j));
    rows.flat_map(|row| &x[row * width..(row + 1) * width]).copied().collect()
}

/// [rows, columns] to [columns, rows].
fn transpose(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| x[r * columns + c])).collect()
}
