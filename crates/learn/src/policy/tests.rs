//! The learned parts where they must not fail: broken weights, odd models, odd machines.

use std::sync::Arc;

use sparoa_core::{
    analyze::analyze,
    backend::{Accelerator, BackendError, DeviceInfo, Program, ProgramSpec, SimulatedGpu},
    ir::{Shapes, passes, specialize},
    ops::{Op, Operands},
    plan::Place,
    predict::FixedThresholds,
    profile::{DeviceProfile, HardwareState, Precision},
    schedule::{Policy, Subject},
};

use super::*;
use crate::{
    Learned, Weights,
    predictor::Architecture,
    shipped::{ACTOR_FILE, predictor_file},
    task::{HELD_OUT, network},
};

fn board() -> DeviceProfile {
    DeviceProfile::find("jetson-orin-nano").unwrap()
}

fn place(subject: &Subject, policy: &SacPolicy) -> Placement {
    let profile = subject.profile(&board().machine(Precision::Fp32));
    let problem = subject.problem(&profile, HardwareState::default());
    let placement = policy.place(&problem).unwrap();
    // Legal, and no worse than either processor alone.
    let score = problem.judge(&placement).unwrap().2;
    for alone in [Policy::Cpu, Policy::Gpu] {
        let other = problem.judge(&alone.scheduler().place(&problem).unwrap()).unwrap().2;
        assert!(score <= 1.01 * other, "{score} over {other} on the {alone} alone");
    }
    placement
}

#[test]
fn shipped_weights_place_held_out_networks() {
    let learned = Learned::shipped().unwrap();
    for seed in HELD_OUT..HELD_OUT + 6 {
        let subject = network(seed, 10 + 8 * (seed - HELD_OUT) as usize);
        let placement = place(&subject, &learned.policy);
        assert_eq!(placement.places.len(), subject.graph.nodes.len());
    }
}

#[test]
fn placements_repeat() {
    let learned = Learned::shipped().unwrap();
    let subject = network(HELD_OUT + 9, 60);
    assert_eq!(place(&subject, &learned.policy), place(&subject, &learned.policy));
}

#[test]
fn one_operator_and_two_thousand() {
    use sparoa_core::{
        ir::{Dim, ModelBuilder},
        ops::{Attributes, find},
        tensor::DType,
    };
    let learned = Learned::shipped().unwrap();
    for count in [1usize, 2000] {
        let mut b = ModelBuilder::new("chain");
        let mut x = b.input("x", DType::F32, vec![Dim::Fixed(1), Dim::Fixed(64), Dim::Fixed(64)]);
        for i in 0..count {
            let spec = find("", "Softmax").unwrap();
            let op = (spec.parse)(&Attributes::new(20, 1, Vec::new())).unwrap();
            x = b.node(format!("n{i}"), op, &[x]);
        }
        b.output(x);
        let graph = specialize(&b.finish(), &Shapes::new()).unwrap().graph;
        let subject = Subject::new(Arc::new(passes::optimize(graph)));
        assert_eq!(subject.topology.running().count(), count);
        let placement = place(&subject, &learned.policy);
        assert_eq!(placement.places.len(), count);
        let profile = subject.profile(&board().machine(Precision::Fp32));
        let all = learned.thresholds.predict(&subject.graph, &subject.analysis, &profile);
        assert_eq!(all.len(), count);
        assert!(all.iter().all(|t| (0.0..=1.0).contains(&t.sparsity) && t.intensity > 0.0));
    }
}

/// A GPU that runs nothing of what it is asked for.
struct Choosy(DeviceInfo);

impl Accelerator for Choosy {
    fn info(&self) -> &DeviceInfo {
        &self.0
    }

    fn supports(&self, _: &dyn Op, _: &Operands<'_>) -> Result<(), String> {
        Err("it runs nothing".to_owned())
    }

    fn load(&self, _: ProgramSpec) -> Result<Box<dyn Program>, BackendError> {
        Err(BackendError::Unavailable("it runs nothing".to_owned()))
    }
}

#[test]
fn what_the_gpu_cannot_run_stays_on_the_cpu() {
    let learned = Learned::shipped().unwrap();
    let gpu = Choosy(SimulatedGpu::new("choosy", true).info().clone());
    let subject = Subject::with(network(HELD_OUT + 3, 20).graph, &gpu);
    let placement = place(&subject, &learned.policy);
    let running: Vec<_> = subject.topology.running().collect();
    assert!(running.iter().all(|id| placement.places[id.index()] == Place::Cpu), "{placement}");
}

/// The shipped weights in a folder, one file of them changed.
fn with_changed(file: &str, change: impl Fn(&mut Vec<u8>)) -> Result<Learned, WeightsError> {
    let folder = tempfile::tempdir().unwrap();
    let shipped = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("weights");
    for name in [ACTOR_FILE.to_owned(), predictor_file(Architecture::TransformerLstm)] {
        let mut bytes = std::fs::read(shipped.join(&name)).unwrap();
        if name == file {
            change(&mut bytes);
        }
        std::fs::write(folder.path().join(&name), bytes).unwrap();
    }
    Learned::from_folder(folder.path())
}

#[test]
fn broken_weights_are_named() {
    let actor = ACTOR_FILE.to_owned();
    let predictor = predictor_file(Architecture::TransformerLstm);
    assert!(with_changed("none", |_| ()).is_ok());
    for file in [&actor, &predictor] {
        let refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let error = with_changed(file, change).err().expect("refused").to_string();
            assert!(error.contains(file.as_str()), "{error}");
        };
        refused(&|bytes| bytes.truncate(bytes.len() / 2));
        refused(&Vec::clear);
        refused(&|bytes| {
            let end = bytes.len();
            bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        });
    }
    let missing = Learned::from_folder(std::path::Path::new("nowhere")).err().unwrap();
    assert!(missing.to_string().contains("nowhere"), "{missing}");
}

#[test]
fn weights_for_other_observations_are_refused() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("weights").join(ACTOR_FILE);
    let weights = Weights::load(&path).unwrap();
    let (inputs, _) = weights.matrix_shape("layers.0.weight").unwrap();
    assert_eq!(inputs, OBSERVATION);
    // A predictor is no actor.
    let other = path.with_file_name(predictor_file(Architecture::Linear));
    assert!(Actor::load(&other).is_err());
}

#[test]
fn without_costs_the_fixed_thresholds_stand() {
    let learned = Learned::shipped().unwrap();
    let graph = network(HELD_OUT, 12).graph;
    let analysis = analyze(&graph);
    let all = learned.thresholds.predict(&graph, &analysis, &Profile::default());
    assert_eq!(all, vec![FixedThresholds::default().0; graph.nodes.len()]);
}
