//! Whether an integrated GPU does better with tensors that it shares with the host or with copies of its
//! own: measured, since devices differ in whether kernels' accesses to shared memory are cached.

use std::{sync::Arc, time::Instant};

use sparoa_core::{
    backend::{Arg, BackendError, Program, ProgramSpec, TaskSpec, View},
    ops::{self, Attributes},
    tensor::{Buffer, TensorType},
};
use sparoa_kernels::Pool;

use super::{driver::TensorMemory, load::load, opened::Shared};
use crate::copies;

/// Bytes of a typical tensor.
const BYTES: usize = 1 << 20;
const ROUNDS: usize = 8;

/// Whether host and device should share buffers.
pub(crate) fn direct_is_faster(shared: &Arc<Shared>) -> bool {
    let staged = round_trip_ns(shared, false);
    let both = staged.and_then(|staged_ns| Ok((staged_ns, round_trip_ns(shared, true)?)));
    copies::direct_is_faster(both)
}

/// Nanoseconds of a tensor's way to the device, through a kernel that reads and writes all of it, and
/// back: the least of some.
pub(crate) fn round_trip_ns(shared: &Arc<Shared>, direct: bool) -> Result<u128, BackendError> {
    let spec = ops::find("", "Relu").expect("it is an operator");
    let op = (spec.parse)(&Attributes::default()).expect("it has no attributes");
    let view = |slot| View { slot, offset: 0, bytes: BYTES };
    let ty = || TensorType::f32([BYTES / size_of::<f32>()]);
    let task = TaskSpec {
        name: "a round trip".to_owned(),
        op,
        inputs: vec![Some(Arg::Slot(view(0), ty()))],
        outputs: vec![(view(1), ty())],
    };
    let program = ProgramSpec {
        tasks: vec![task],
        segments: vec![0..1],
        slots: vec![BYTES; 2],
        uploads: vec![view(0)],
        downloads: vec![view(1)],
        ..ProgramSpec::default()
    };
    // As sessions keep inputs where it is of use; dropped after the program, which may be reading it.
    let input = shared.run("measuring copies", || TensorMemory::new(&shared.context, BYTES))?;
    let program = load(shared, program, direct.into())?;
    let (mut output, pool) = (vec![0; BYTES], Pool::new(1));
    let mut least = u128::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        program.upload(0, input.bytes(), &pool)?;
        program.launch(0)?;
        program.download(0, &mut output)?;
        least = least.min(start.elapsed().as_nanos());
    }
    Ok(least)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CudaBackend, CudaOptions};

    /// On whatever card: what an integrated one is asked when it first loads a program.
    #[test]
    fn both_ways_are_measured() {
        let backend = match CudaBackend::new(&CudaOptions::default()) {
            Ok(backend) => backend,
            Err(error) => return println!("skipped: {error}"),
        };
        let [staged, direct] =
            [false, true].map(|direct| round_trip_ns(&backend.shared, direct).unwrap());
        println!("1 MiB there and back: staged {staged} ns, direct {direct} ns");
        assert!(staged > 0 && direct > 0);
    }
}
