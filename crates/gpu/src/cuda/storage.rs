//! How values are stored on the device. With fp16 arithmetic, operators hand f16 on to one another,
//! with bf16 arithmetic bf16: half the bytes, and a product's operands would be rounded to it anyway.
//! f32 stay values that the host reads, sums within a kernel and those of a product that is cut into
//! parts, and what is not f32 by its type.

use sparoa_core::{
    backend::{Arg, ProgramSpec, ValueAccesses},
    ops::{Halves, MatrixUnits},
    tensor::DType,
};

/// A number of 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    F16,
    Bf16,
}

impl Half {
    /// That of products of this arithmetic, if its operands have 16 bits.
    pub(crate) fn of(units: Option<MatrixUnits>) -> Option<Half> {
        match units {
            Some(MatrixUnits::Fp16) => Some(Half::F16),
            Some(MatrixUnits::Bf16) => Some(Half::Bf16),
            Some(MatrixUnits::Tf32) | None => None,
        }
    }
}

/// What is stored in 16 bits.
pub(crate) struct Storage {
    /// Operands, for each task.
    pub(crate) tasks: Vec<Halves>,
    /// The targets of uploads: what these round to.
    pub(crate) uploads: Vec<Option<Half>>,
}

impl Storage {
    /// The storage of a program for products of this arithmetic.
    pub(crate) fn of(spec: &ProgramSpec, units: Option<MatrixUnits>) -> Storage {
        let half = Half::of(units);
        let temps = half.is_some();
        let mut storage = Storage {
            tasks: vec![Halves { temps, ..Halves::default() }; spec.tasks.len()],
            uploads: vec![None; spec.uploads.len()],
        };
        if !temps {
            return storage;
        }
        for value in spec.values.iter().filter(|value| fits(spec, value)) {
            for &(task, i) in &value.inputs {
                storage.tasks[task].inputs |= 1 << i;
            }
            for &(task, i) in &value.outputs {
                storage.tasks[task].outputs |= 1 << i;
            }
            for &copy in &value.uploads {
                storage.uploads[copy] = half;
            }
        }
        storage
    }
}

/// Whether every access to a value takes it as f32, and none is the host's reading it.
fn fits(spec: &ProgramSpec, value: &ValueAccesses) -> bool {
    let float = |dtype: DType, i: usize| dtype == DType::F32 && i < Halves::OPERANDS;
    let used = !value.inputs.is_empty() || !value.outputs.is_empty();
    let input = |task: usize, i: usize| match spec.tasks.get(task)?.inputs.get(i)?.as_ref()? {
        Arg::Slot(_, ty) => Some(ty),
        Arg::Constant(_) => None,
    };
    let output = |task: usize, i: usize| Some(&spec.tasks.get(task)?.outputs.get(i)?.1);
    let read = |&(task, i): &(usize, usize)| input(task, i).is_some_and(|ty| float(ty.dtype, i));
    let written =
        |&(task, i): &(usize, usize)| output(task, i).is_some_and(|ty| float(ty.dtype, i));
    used && value.inputs.iter().all(read)
        && value.outputs.iter().all(written)
        && value.uploads.iter().all(|copy| *copy < spec.uploads.len())
        && value.downloads.is_empty()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sparoa_core::{
        backend::{TaskSpec, View},
        ops::gemm::Linear,
        tensor::TensorType,
    };

    use super::*;

    /// Task i reads value i and writes value i + 1; the first is uploaded, the last downloaded.
    fn chain(types: &[TensorType]) -> ProgramSpec {
        let view = |i: usize| View { slot: i, offset: 0, bytes: types[i].bytes() };
        let slot = |i: usize| Arg::Slot(view(i), types[i].clone());
        let last = types.len() - 1;
        let task = |i: usize| TaskSpec {
            name: String::new(),
            op: Arc::new(Linear::default()),
            inputs: vec![Some(slot(i))],
            outputs: vec![(view(i + 1), types[i + 1].clone())],
        };
        let value = |i: usize| ValueAccesses {
            inputs: (i < last).then_some((i, 0)).into_iter().collect(),
            outputs: i.checked_sub(1).map(|task| (task, 0)).into_iter().collect(),
            uploads: (i == 0).then_some(0).into_iter().collect(),
            downloads: (i == last).then_some(0).into_iter().collect(),
        };
        ProgramSpec {
            tasks: (0..last).map(task).collect(),
            slots: types.iter().map(TensorType::bytes).collect(),
            uploads: vec![view(0)],
            downloads: vec![view(last)],
            values: (0..types.len()).map(value).collect(),
            ..ProgramSpec::default()
        }
    }

    #[test]
    fn what_the_host_reads_and_other_types_stay() {
        let float = || TensorType::f32([4]);
        let index = TensorType::new(DType::I32, [4]);
        let spec = chain(&[float(), float(), index, float(), float()]);
        let bfloat = Storage::of(&spec, Some(MatrixUnits::Bf16));
        let halves = Storage::of(&spec, Some(MatrixUnits::Fp16));
        assert_eq!((&bfloat.tasks, bfloat.uploads), (&halves.tasks, vec![Some(Half::Bf16)]));
        let inputs: Vec<u64> = halves.tasks.iter().map(|task| task.inputs).collect();
        let outputs: Vec<u64> = halves.tasks.iter().map(|task| task.outputs).collect();
        assert_eq!((inputs, outputs), (vec![1, 1, 0, 1], vec![1, 0, 1, 0]));
        assert!(halves.tasks[0].temps && halves.uploads == [Some(Half::F16)]);
    }

    #[test]
    fn other_precisions_and_unknown_values_stay() {
        let float = || TensorType::f32([4]);
        let spec = chain(&[float(), float(), float()]);
        for units in [None, Some(MatrixUnits::Tf32)] {
            let halves = Storage::of(&spec, units);
            assert!(halves.tasks.iter().all(|task| *task == Halves::default()));
            assert_eq!(halves.uploads, [None]);
        }
        let values = spec.values.clone();
        let unknown = ProgramSpec { values: Vec::new(), ..spec };
        let halves = Storage::of(&unknown, Some(MatrixUnits::Fp16));
        assert!(halves.tasks.iter().all(|task| (task.inputs, task.outputs) == (0, 0)));
        // Accesses that the program does not have.
        let other = ProgramSpec { values, tasks: Vec::new(), ..unknown };
        assert_eq!(Storage::of(&other, Some(MatrixUnits::Fp16)).uploads, [None]);
    }
}
