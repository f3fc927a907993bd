//! Batches of requests: rows gathered into a session's inputs, results scattered.

use super::QueueError;
use crate::{
    session::{Session, SessionError, ValueInfo},
    tensor::{Storage, Tensor, TensorType},
};

type Compute = Box<dyn FnMut(&[&Tensor], &mut [Tensor]) -> Result<(), SessionError> + Send>;

fn zeros(types: Vec<TensorType>) -> impl Iterator<Item = Tensor> {
    types.into_iter().map(Tensor::zeros)
}

/// A session of one batch size, with buffers.
pub(super) struct Prepared {
    pub batch: usize,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    /// Rows of `inputs` that are not zero.
    filled: usize,
    compute: Compute,
}

impl Prepared {
    /// Of a session all of whose inputs and outputs have the same leading dimension.
    pub fn of(mut session: Session) -> Result<Prepared, QueueError> {
        let mut batch = None;
        let mut types = |what: &str, infos: &[ValueInfo]| {
            infos.iter().map(|info| row_type(what, info, &mut batch)).collect::<Result<_, _>>()
        };
        let inputs = types("input", session.inputs())?;
        let outputs = types("output", session.outputs())?;
        let inputs = zeros(inputs).map(|tensor| session.upload_ready(tensor)).collect();
        let outputs = zeros(outputs).collect();
        let compute = move |x: &[&Tensor], y: &mut [Tensor]| session.run_into(x, y);
        Ok(Prepared::new(batch.unwrap_or(1), inputs, outputs, Box::new(compute)))
    }

    /// With zero inputs.
    pub fn new(
        batch: usize,
        inputs: Vec<Tensor>,
        outputs: Vec<Tensor>,
        compute: Compute,
    ) -> Prepared {
        Prepared { batch, inputs, outputs, filled: 0, compute }
    }

    /// Types of the inputs with so many rows.
    pub fn input_types(&self, rows: usize) -> Vec<TensorType> {
        self.inputs.iter().map(|t| with_rows(t.ty(), rows)).collect()
    }

    /// Computes requests, whose rows together fit, padded with zero rows.
    pub fn run(&mut self, requests: &[&[Tensor]]) -> Result<Vec<Vec<Tensor>>, SessionError> {
        if let [only] = requests
            && rows(only) == self.batch
        {
            let inputs: Vec<&Tensor> = only.iter().collect();
            let zeros = self.outputs.iter().map(|t| Tensor::zeros(t.ty().clone()));
            let mut outputs: Vec<Tensor> = zeros.collect();
            (self.compute)(&inputs, &mut outputs)?;
            return Ok(vec![outputs]);
        }
        for (i, tensor) in self.inputs.iter_mut().enumerate() {
            let row = tensor.ty().bytes() / self.batch;
            let (bytes, mut at) = (tensor.bytes_mut(), 0);
            for request in requests {
                let from = request[i].bytes();
                bytes[at..at + from.len()].copy_from_slice(from);
                at += from.len();
            }
            let stale = self.filled * row;
            if stale > at {
                bytes[at..stale].fill(0);
            }
        }
        self.filled = requests.iter().map(|r| rows(r)).sum();
        let inputs: Vec<&Tensor> = self.inputs.iter().collect();
        (self.compute)(&inputs, &mut self.outputs)?;
        let mut from = 0;
        let scattered = requests.iter().map(|request| {
            let to = from + rows(request);
            let outputs = self.outputs.iter().map(|whole| {
                let row = whole.ty().bytes() / self.batch;
                let bytes = Storage::copy_from(&whole.bytes()[from * row..to * row]);
                Tensor::new(with_rows(whole.ty(), to - from), bytes).expect("rows are whole")
            });
            let outputs = outputs.collect();
            from = to;
            outputs
        });
        Ok(scattered.collect())
    }
}

/// The type of a value whose leading dimension is the batch, the same for all.
fn row_type(
    what: &str,
    info: &ValueInfo,
    batch: &mut Option<usize>,
) -> Result<TensorType, QueueError> {
    let rows = info.ty.as_ref().and_then(|ty| ty.shape.first().copied()).filter(|&n| n > 0);
    match (&info.ty, rows) {
        (Some(ty), Some(rows)) if *batch.get_or_insert(rows) == rows => Ok(ty.clone()),
        (ty, _) => Err(QueueError::Options(format!(
            "{what} '{}' ({}) has no row for each of the batch's {}: the model cannot be batched",
            info.name,
            ty.as_ref().map_or("of unknown shape".to_owned(), ToString::to_string),
            batch.unwrap_or(1),
        ))),
    }
}

/// The rows of a request whose inputs were checked.
pub(super) fn rows(inputs: &[Tensor]) -> usize {
    inputs.first().and_then(|t| t.shape().first()).copied().unwrap_or(1)
}

pub(super) fn with_rows(ty: &TensorType, rows: usize) -> TensorType {
    let mut ty = ty.clone();
    if let Some(first) = ty.shape.first_mut() {
        *first = rows;
    }
    ty
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_gathered_padded_and_scattered() {
        let ty = TensorType::f32([4, 2]);
        let negate = |x: &[&Tensor], y: &mut [Tensor]| {
            let x = x[0].as_slice::<f32>().unwrap();
            let y = y[0].as_slice_mut::<f32>().unwrap();
            y.iter_mut().zip(x).for_each(|(y, x)| *y = -x);
            Ok(())
        };
        let mut p = Prepared::new(
            4,
            zeros(vec![ty.clone()]).collect(),
            zeros(vec![ty]).collect(),
            Box::new(negate),
        );
        let request = |rows: usize, v: f32| vec![Tensor::from_slice([rows, 2], &vec![v; 2 * rows])];
        let (a, b, full) = (request(1, 1.0), request(2, 2.0), request(4, 3.0));
        let out = p.run(&[&a, &b]).unwrap();
        assert_eq!(out, [request(1, -1.0), request(2, -2.0)]);
        assert_eq!(&p.inputs[0].as_slice::<f32>().unwrap()[6..], [0.0; 2]);
        // Rows of the last batch do not stay behind.
        assert_eq!(p.run(&[&a]).unwrap(), [request(1, -1.0)]);
        assert_eq!(&p.inputs[0].as_slice::<f32>().unwrap()[2..], [0.0; 6]);
        assert_eq!(p.run(&[&full]).unwrap(), [request(4, -3.0)]);
    }
}
