//! Segments, copies, views and threads.

use std::sync::{Arc, Barrier};

use sparoa_core::{
    backend::{Accelerator, Arg, BackendError, ProgramSpec, TaskSpec, View, upload_ready},
    ops::gemm::Linear,
    tensor::{Tensor, TensorType},
};
use sparoa_gpu::{GpuOptions, Transfer, open_gpu};

use crate::device::{gpu, options, pool};

const ROW: usize = 4;

fn view(slot: usize, row: usize, rows: usize) -> View {
    View { slot, offset: row * ROW * 4, bytes: rows * ROW * 4 }
}

/// `output = factor * input`, rows of 4, as a product with a diagonal matrix.
fn scale(factor: f32, input: View, output: View) -> TaskSpec {
    let mut matrix = [0.0; ROW * ROW];
    for i in 0..ROW {
        matrix[i * ROW + i] = factor;
    }
    let ty = TensorType::f32([input.bytes / (ROW * 4), ROW]);
    TaskSpec {
        name: format!("times {factor}"),
        op: Arc::new(Linear::default()),
        inputs: vec![
            Some(Arg::Slot(input, ty.clone())),
            Some(Arg::Constant(Arc::new(Tensor::from_slice([ROW, ROW], &matrix)))),
        ],
        outputs: vec![(output, ty)],
    }
}

fn floats(rows: usize, first: f32) -> Vec<f32> {
    (0..rows * ROW).map(|i| first + i as f32).collect()
}

fn scaled(data: &[f32], factor: f32) -> Vec<f32> {
    data.iter().map(|v| v * factor).collect()
}

/// Backends with every way of copying.
fn backends() -> Vec<Arc<dyn Accelerator>> {
    if gpu().is_none() {
        return Vec::new();
    }
    [Transfer::Staged, Transfer::Direct, Transfer::Auto]
        .map(|transfer| open_gpu(&GpuOptions { transfer, ..options() }).unwrap())
        .into()
}

/// Slot 0 -> slot 1 (rows 0..2 here, rows 2..3 uploaded) -> slot 2, in two segments.
fn split_value() -> ProgramSpec {
    ProgramSpec {
        tasks: vec![
            scale(2.0, view(0, 0, 2), view(1, 0, 2)),
            scale(3.0, view(1, 0, 3), view(2, 0, 3)),
        ],
        segments: vec![0..1, 1..2],
        slots: vec![2 * ROW * 4, 3 * ROW * 4, 3 * ROW * 4],
        uploads: vec![view(0, 0, 2), view(1, 2, 1)],
        downloads: vec![view(1, 0, 2), view(2, 0, 3), view(2, 1, 1)],
        beside_cpu: true,
        values: Vec::new(),
    }
}

#[test]
fn segments_and_copies_in_any_mode() {
    for gpu in backends() {
        let program = gpu.load(split_value()).unwrap();
        assert!(program.device_bytes() > 0);
        for round in 0..3 {
            let (x, y) = (floats(2, round as f32), floats(1, 100.0 + round as f32));
            program.upload(0, bytemuck::cast_slice(&x), &pool()).unwrap();
            program.launch(0).unwrap();
            program.upload(1, bytemuck::cast_slice(&y), &pool()).unwrap();
            let mut half = vec![0f32; 2 * ROW];
            program.download(0, bytemuck::cast_slice_mut(&mut half)).unwrap();
            assert_eq!(half, scaled(&x, 2.0));
            program.launch(1).unwrap();
            let mut all = vec![0f32; 3 * ROW];
            program.download(1, bytemuck::cast_slice_mut(&mut all)).unwrap();
            assert_eq!(all, [scaled(&x, 6.0), scaled(&y, 3.0)].concat());
            let mut row = vec![0f32; ROW];
            program.download(2, bytemuck::cast_slice_mut(&mut row)).unwrap();
            assert_eq!(row, all[ROW..2 * ROW]);
        }
        program.wait_idle().unwrap();
        match program.time_segment(1) {
            Ok(times) => assert_eq!(times.len(), 1),
            Err(e) => assert!(matches!(e, BackendError::NoTimestamps(_)), "{e}"),
        }
    }
}

#[test]
fn an_upload_that_was_never_launched_is_replaced() {
    for gpu in backends() {
        let program = gpu.load(split_value()).unwrap();
        let x = floats(2, 7.0);
        program.upload(0, bytemuck::cast_slice(&floats(2, 1.0)), &pool()).unwrap();
        program.upload(0, bytemuck::cast_slice(&x), &pool()).unwrap();
        program.launch(0).unwrap();
        let mut y = vec![0f32; 2 * ROW];
        program.download(0, bytemuck::cast_slice_mut(&mut y)).unwrap();
        assert_eq!(y, scaled(&x, 2.0));
    }
}

/// Inputs in memory that the device reads by itself arrive like others, again and again, mixed with
/// them, and may be written as soon as the uploads have been waited for.
#[test]
fn uploads_from_memory_of_the_device() {
    const ROWS: usize = 1 << 16;
    for gpu in backends() {
        let spec = ProgramSpec {
            tasks: vec![scale(3.0, view(0, 0, ROWS), view(1, 0, ROWS))],
            segments: vec![0..1],
            slots: vec![ROWS * ROW * 4; 2],
            uploads: vec![view(0, 0, ROWS)],
            downloads: vec![view(1, 0, ROWS)],
            ..ProgramSpec::default()
        };
        let program = gpu.load(spec).unwrap();
        let mut lent =
            upload_ready(Some(&*gpu), Tensor::from_slice([ROWS, ROW], &floats(ROWS, 0.0)));
        let mut y = vec![0f32; ROWS * ROW];
        for round in 0..6 {
            let x = floats(ROWS, round as f32);
            lent.as_slice_mut::<f32>().unwrap().copy_from_slice(&x);
            let bytes = if round == 3 { bytemuck::cast_slice(&x) } else { lent.bytes() };
            program.upload(0, bytes, &pool()).unwrap();
            program.launch(0).unwrap();
            program.wait_uploads().unwrap();
            lent.bytes_mut().fill(0xff);
            program.download(0, bytemuck::cast_slice_mut(&mut y)).unwrap();
            assert_eq!(y, scaled(&x, 3.0), "round {round}");
        }
    }
}

/// Uploads, launches and downloads on a thread each, ordered by barriers as a plan's events
/// order them: while one value is computed, the next is uploaded and the last downloaded.
#[test]
fn three_threads() {
    const ROUNDS: usize = 12;
    for gpu in backends() {
        // Two values in flight, each with an input and an output slot.
        let spec = ProgramSpec {
            tasks: (0..2).map(|i| scale(2.0, view(i, 0, 8), view(2 + i, 0, 8))).collect(),
            segments: vec![0..1, 1..2],
            slots: vec![8 * ROW * 4; 4],
            uploads: vec![view(0, 0, 8), view(1, 0, 8)],
            downloads: vec![view(2, 0, 8), view(3, 0, 8)],
            beside_cpu: true,
            values: Vec::new(),
        };
        let program = gpu.load(spec).unwrap();
        let barrier = Barrier::new(3);
        let data: Vec<Vec<f32>> = (0..ROUNDS).map(|i| floats(8, i as f32)).collect();
        std::thread::scope(|scope| {
            // In phase p: upload p, launch p - 1, download p - 2.
            const PHASES: usize = ROUNDS + 2;
            scope.spawn(|| {
                for phase in 0..PHASES {
                    if let Some(x) = data.get(phase) {
                        program.upload(phase % 2, bytemuck::cast_slice(x), &pool()).unwrap();
                    }
                    barrier.wait();
                }
            });
            scope.spawn(|| {
                for phase in 0..PHASES {
                    if (1..=ROUNDS).contains(&phase) {
                        program.launch((phase - 1) % 2).unwrap();
                    }
                    barrier.wait();
                }
            });
            scope.spawn(|| {
                let mut y = vec![0f32; 8 * ROW];
                for phase in 0..PHASES {
                    if phase >= 2 {
                        let round = phase - 2;
                        program.download(round % 2, bytemuck::cast_slice_mut(&mut y)).unwrap();
                        assert_eq!(y, scaled(&data[round], 2.0), "round {round}");
                    }
                    barrier.wait();
                }
            });
        });
    }
}

#[test]
fn programs_share_weights() {
    let Some(gpu) = gpu() else { return };
    let task = || {
        let weight = Arc::new(crate::device::values(&[64, 64], 9));
        let ty = TensorType::f32([1, 64]);
        let whole = |slot| View { slot, offset: 0, bytes: 256 };
        ProgramSpec {
            tasks: vec![TaskSpec {
                name: "fc".into(),
                op: Arc::new(Linear::default()),
                inputs: vec![Some(Arg::Slot(whole(0), ty.clone())), Some(Arg::Constant(weight))],
                outputs: vec![(whole(1), ty)],
            }],
            segments: vec![0..1],
            slots: vec![256, 256],
            uploads: vec![whole(0)],
            downloads: vec![whole(1)],
            beside_cpu: true,
            values: Vec::new(),
        }
    };
    // Equal weights in different tensors: the second program finds the first one's buffer.
    let (first, second) = (gpu.load(task()).unwrap(), gpu.load(task()).unwrap());
    let x = vec![1f32; 64];
    let run = |program: &dyn sparoa_core::backend::Program| {
        let mut y = vec![0f32; 64];
        program.upload(0, bytemuck::cast_slice(&x), &pool()).unwrap();
        program.launch(0).unwrap();
        program.download(0, bytemuck::cast_slice_mut(&mut y)).unwrap();
        y
    };
    assert_eq!(run(&*first), run(&*second));
    drop(first);
    assert_eq!(run(&*second).len(), 64);
}
