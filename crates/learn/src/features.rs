//! What the threshold predictor sees of an operator. Everything comes from the graph's analysis and
//! a profile's costs, measured or estimated, so that one predictor serves real and simulated
//! machines. All choices of features are ours.

use sparoa_core::{
    analyze::Analysis, backend::Device, ir::NodeId, ops::KernelClass, predict::Thresholds,
    profile::Profile,
};

/// Features per operator.
pub const FEATURES: usize = 24;

/// The lowest and highest intensity that a threshold can have, in operations per byte.
pub const INTENSITY_RANGE: (f64, f64) = (0.05, 5_000.0);

/// The zeros that unstructured kernels break even at where a profile does not say how fast they
/// are; see [`Profile::sparse_efficiency`].
const TYPICAL_SPARSE_EFFICIENCY: f64 = 0.45;

/// An intensity on the scale of [`INTENSITY_RANGE`], 0 to 1.
pub fn intensity_to_unit(intensity: f64) -> f64 {
    let (low, high) = INTENSITY_RANGE;
    (intensity.clamp(low, high) / low).ln() / (high / low).ln()
}

/// Nearer to an end of its scale than this, a threshold is at the end: always, or never. Weights
/// with so few zeros do not occur, and an end must not be missed by a hair.
const ENDS: f32 = 0.06;

/// Thresholds from a predictor's outputs in [0, 1]; `None` when they are not such.
pub fn thresholds(sparsity: f32, intensity: f32) -> Option<Thresholds> {
    let unit = |v: f32| match v {
        v if !(0.0..=1.0).contains(&v) => None,
        v if v < ENDS => Some(0.0),
        v if v > 1.0 - ENDS => Some(1.0),
        v => Some(f64::from(v)),
    };
    let (low, high) = INTENSITY_RANGE;
    Some(Thresholds {
        sparsity: unit(sparsity)?,
        intensity: low * (high / low).powf(unit(intensity)?),
    })
}

/// The features of every operator that runs, row-major; nodes that run nowhere are left out.
///
/// Per operator: its operations, bytes, weight bytes and intensity (logarithms), zeros, the share of
/// its operations in each class, its time on each processor and their ratio (logarithms), the share
/// of those times that a part of any size pays, whether the GPU runs it, the rates that it attains. Of
/// the machine: what copies of this operator's operands cost beside it, what a submission costs, and
/// how fast sparse kernels are.
pub fn features(analysis: &Analysis, profile: &Profile, running: &[NodeId]) -> Vec<f32> {
    let mut rows = Vec::with_capacity(running.len() * FEATURES);
    for &id in running {
        rows.extend(row(analysis, profile, id));
    }
    rows
}

fn row(analysis: &Analysis, profile: &Profile, id: NodeId) -> [f32; FEATURES] {
    let node = analysis.node(id);
    let log = |v: f64| (v.max(1e-3).log10()) as f32;
    let ns = |device| profile.part_ns(id, device, 1.0) as f64;
    let fixed = |device| {
        let cost = profile.cost(id, device).unwrap_or_default();
        cost.fixed_ns as f32 / cost.latency_ns.max(1) as f32
    };
    let (cpu, gpu) = (ns(Device::Cpu), ns(Device::Gpu));
    let runs = profile.cost(id, Device::Gpu).is_some();
    let products: f64 = node.products.iter().map(|(_, flops)| *flops as f64).sum();
    let share = |class: KernelClass| {
        let own = node.products.iter().filter(|(c, _)| *c == class).map(|(_, f)| *f as f64);
        if products > 0.0 { (own.sum::<f64>() / products) as f32 } else { 0.0 }
    };
    let activations = (node.bytes - node.weight_bytes) as usize;
    let up = profile.upload.copy_ns(activations / 2) as f64;
    let down = profile.download.copy_ns(activations / 2) as f64;
    let sparse = match profile.sparse_efficiency {
        rate if rate > 0.0 => rate,
        _ => TYPICAL_SPARSE_EFFICIENCY,
    };
    [
        log(node.flops as f64) / 4.0,
        log(node.bytes as f64) / 4.0,
        log(node.weight_bytes as f64 + 1.0) / 4.0,
        log(node.intensity()),
        node.weight_sparsity.unwrap_or(0.0) as f32,
        f32::from(u8::from(node.weight_sparsity.is_some())),
        share(KernelClass::Matmul),
        share(KernelClass::Convolution),
        share(KernelClass::Depthwise),
        node.products.len() as f32 / 3.0,
        log(cpu) / 3.0,
        log(gpu) / 3.0,
        log(cpu / gpu.max(1.0)),
        fixed(Device::Cpu),
        fixed(Device::Gpu),
        f32::from(u8::from(runs)),
        // Rates that it attains: they tell the machine.
        log(products / cpu.max(1.0) + 1e-3),
        log(products / gpu.max(1.0) + 1e-3),
        log(node.bytes as f64 / cpu.max(1.0)),
        log(node.bytes as f64 / gpu.max(1.0)),
        log(up / cpu.max(1.0)),
        log(down / gpu.max(1.0)),
        log(profile.submit_ns as f64 + 1.0) / 3.0,
        sparse as f32,
    ]
}
