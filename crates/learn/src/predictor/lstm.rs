//! A bidirectional LSTM layer over a sequence (Hochreiter and Schmidhuber 1997; forget gates after
//! Gers et al. 2000).

use sparoa_kernels::activation::Residual;
use sparoa_kernels::gemm::{PackedB, gemm};
use sparoa_kernels::math::activation_in_place;
use sparoa_kernels::{Activation, Epilogue, Pool};

use crate::dense::Dense;
use crate::weights::{Weights, WeightsError};

/// One direction. Columns of its matrices are the gates input, forget, output and the candidate, in
/// this order: the three sigmoids are neighbours.
struct Direction {
    input: Dense,
    recurrent: PackedB,
}

impl Direction {
    fn from_weights(w: &Weights, name: &str, inputs: usize) -> Result<Direction, WeightsError> {
        let recurrent = format!("{name}.recurrent.weight");
        let (hidden, _) = w.matrix_shape(&recurrent)?;
        let matrix = w.tensor(&recurrent, &[hidden, 4 * hidden])?;
        let recurrent = PackedB::new(hidden, 4 * hidden, matrix, false);
        let input = Dense::from_weights(w, &format!("{name}.input"), inputs, 4 * hidden)?;
        Ok(Direction { input, recurrent })
    }

    fn hidden(&self) -> usize {
        self.recurrent.k()
    }

    /// Writes the states of all rows into columns `column`.. of `out`, rows `width` apart.
    fn apply(
        &self,
        rows: usize,
        x: &[f32],
        reversed: bool,
        out: &mut [f32],
        (column, width): (usize, usize),
        pool: &Pool,
    ) {
        let n = self.hidden();
        // What the inputs contribute to all gates of all rows, in one product.
        let mut given = vec![0.0; rows * 4 * n];
        self.input.apply(rows, x, &Epilogue::NONE, &mut given, pool);
        let (mut state, mut cell) = (vec![0.0; n], vec![0.0; n]);
        let (mut gates, mut squashed) = (vec![0.0; 4 * n], vec![0.0; n]);
        for i in 0..rows {
            let row = if reversed { rows - 1 - i } else { i };
            let given = Residual::BeforeActivation(&given[row * 4 * n..(row + 1) * 4 * n]);
            let add = Epilogue { activation: Activation::None, residual: given };
            gemm(1, &state, n, &self.recurrent, None, &add, &mut gates, pool);
            let (sigmoids, candidate) = gates.split_at_mut(3 * n);
            activation_in_place(Activation::Sigmoid, sigmoids);
            activation_in_place(Activation::Tanh, candidate);
            let (input, forget) = (&sigmoids[..n], &sigmoids[n..2 * n]);
            for (j, cell) in cell.iter_mut().enumerate() {
                *cell = forget[j] * *cell + input[j] * candidate[j];
            }
            squashed.copy_from_slice(&cell);
            activation_in_place(Activation::Tanh, &mut squashed);
            for (j, state) in state.iter_mut().enumerate() {
                *state = sigmoids[2 * n + j] * squashed[j];
            }
            out[row * width + column..][..n].copy_from_slice(&state);
        }
    }
}

/// Both directions, their states side by side.
pub(super) struct BiLstm {
    forward: Direction,
    backward: Direction,
}

impl BiLstm {
    pub(super) fn from_weights(
        w: &Weights,
        name: &str,
        inputs: usize,
    ) -> Result<BiLstm, WeightsError> {
        let forward = Direction::from_weights(w, &format!("{name}.forward"), inputs)?;
        let backward = Direction::from_weights(w, &format!("{name}.backward"), inputs)?;
        Ok(BiLstm { forward, backward })
    }

    /// Features per row of its result.
    pub(super) fn outputs(&self) -> usize {
        self.forward.hidden() + self.backward.hidden()
    }

    /// The states, rows x outputs, for inputs rows x inputs.
    pub(super) fn apply(&self, rows: usize, x: &[f32], pool: &Pool) -> Vec<f32> {
        let width = self.outputs();
        let mut out = vec![0.0; rows * width];
        self.forward.apply(rows, x, false, &mut out, (0, width), pool);
        self.backward.apply(rows, x, true, &mut out, (self.forward.hidden(), width), pool);
        out
    }
}
