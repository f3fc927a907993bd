//! Plans as text, and broken plans that verification must catch.

use super::*;
use crate::{
    backend::{NullAccelerator, NullOptions},
    ir::{Graph, Shapes, passes, specialize},
    toy::{self, Toy, ToyGraph},
    zoo,
};

fn plan(graph: &Graph, places: &[Place]) -> Plan {
    let null = NullAccelerator::new(NullOptions::default());
    let support = Support::of(graph, Some(&*null));
    compile(graph, &Placement { places: places.to_vec() }, &support, None).unwrap()
}

#[test]
fn a_split_chain_exchanges_halo_rows_only() {
    let graph = toy::blur_chain();
    let text = plan(&graph, &[Place::Split(0.5); 4]).to_string();
    // A row is 16 bytes; of 8 rows each side computes 4 and fetches one of halo per node.
    let head = "plan chain: 4 cpu tasks, 4 gpu tasks in 4 segments, 4 uploads, 4 downloads, \
                15 events, arena 256 B, slots [128, 128] B\n";
    let lanes = "\
cpu:
  run a[4..8] (Blur) x[48..128] -> a[64..128]
  signal 1
  wait 4
  run b[4..8] (Blur) a[48..128] -> b[64..128]
  signal 5
  wait 8
  run c[4..8] (Blur) b[48..128] -> c[64..128]
  signal 9
  wait 12
  run d[4..8] (Blur) c[48..128] -> d[64..128]
  wait 14
gpu:
  wait 0
  submit 0
    launch a[0..4] (Blur) x[0..80] -> a[0..64]
  signal 3
  wait 2
  submit 1
    launch b[0..4] (Blur) a[0..80] -> b[0..64]
  signal 7
  wait 6
  submit 2
    launch c[0..4] (Blur) b[0..80] -> c[0..64]
  signal 11
  wait 10
  submit 3
    launch d[0..4] (Blur) c[0..80] -> d[0..64]
  signal 13
upload:
  copy x[0..80]
  signal 0
  wait 1
  copy a[64..80]
  signal 2
  wait 5
  copy b[64..80]
  signal 6
  wait 9
  copy c[64..80]
  signal 10
download:
  wait 3
  copy a[48..64]
  signal 4
  wait 7
  copy b[48..64]
  signal 8
  wait 11
  copy c[48..64]
  signal 12
  wait 13
  copy d[0..64]
  signal 14
";
    assert_eq!(text, format!("{head}{lanes}"));
}

#[test]
fn gpu_tasks_between_synchronisations_are_one_segment() {
    let graph = toy::diamond();
    let all = plan(&graph, &[Place::Gpu; 5]);
    assert_eq!(all.segments, [0..5]);
    assert_eq!((all.uploads.len(), all.downloads.len(), all.events), (1, 1, 3));
    // `d` awaits an upload; `a` and `b` need not.
    let split = plan(&graph, &[Place::Gpu, Place::Gpu, Place::Cpu, Place::Gpu, Place::Cpu]);
    assert_eq!(split.segments, [0..2, 2..3]);
}

#[test]
fn a_batch_split_exchanges_nothing_before_the_output() {
    let mut g = ToyGraph::new("batch");
    let mut x = g.input("x", &[8, 4]);
    for name in ["a", "b", "c"] {
        x = g.add(name, Toy::Affine, &[x]);
    }
    let graph = g.output(x).finish();
    let plan = plan(&graph, &[Place::Split(0.25); 3]);
    assert_eq!(plan.segments, [0..3]);
    assert_eq!(plan.uploads, [Transfer { buffer: 0, range: 0..32 }]);
    assert_eq!(plan.downloads, [Transfer { buffer: 3, range: 0..32 }]);
}

#[test]
fn buffers_share_memory_along_a_chain_and_views_cost_nothing() {
    let graph = toy::blur_chain();
    let cpu = plan(&graph, &[Place::Cpu; 4]);
    assert_eq!(cpu.arena_bytes, 2 * 128);
    let gpu = plan(&graph, &[Place::Gpu; 4]);
    assert_eq!(gpu.slots, [128, 128]);

    let mut g = ToyGraph::new("views");
    let x = g.input("x", &[8, 4]);
    let flat = g.add("flat", Toy::View(vec![1, 32]), &[x]);
    let y = g.add("y", Toy::Affine, &[flat]);
    let back = g.add("back", Toy::View(vec![8, 4]), &[y]);
    let graph = g.output(back).output(flat).output(back).finish();
    let plan = plan(&graph, &[Place::Cpu; 3]);
    assert_eq!(plan.cpu.len(), 1);
    assert_eq!(plan.outputs[0].source, OutputBytes::Buffer(1));
    assert_eq!(plan.outputs[1].source, OutputBytes::Input(0));
    assert_eq!(plan.outputs[2], plan.outputs[0]);
}

#[test]
fn work_that_leads_nowhere_is_dropped() {
    let mut g = ToyGraph::new("dead");
    let x = g.input("x", &[8, 4]);
    let y = g.add("y", Toy::Affine, &[x]);
    g.add("dead", Toy::Affine, &[y]);
    let graph = g.output(y).finish();
    assert_eq!(plan(&graph, &[Place::Gpu; 2]).gpu.len(), 1);
}

/// Every single damage to a plan's synchronisation, order or memory is found.
#[test]
fn verification_catches_broken_plans() {
    let graph = toy::blur_chain();
    let good = plan(&graph, &[Place::Split(0.5); 4]);
    assert_eq!(verify(&good), Ok(()));
    for lane in Lane::ALL {
        for i in 0..good.lane(lane).len() {
            let mut broken = good.clone();
            broken.lanes[lane.index()].remove(i);
            assert!(verify(&broken).is_err(), "removed step {i} of {lane}");
        }
    }
    // Waits moved behind the step that they protect.
    for lane in Lane::ALL {
        for i in 1..good.lane(lane).len() {
            let mut broken = good.clone();
            let steps = &mut broken.lanes[lane.index()];
            if matches!(steps[i - 1], Step::Wait(_)) {
                steps.swap(i - 1, i);
                assert!(verify(&broken).is_err(), "swapped steps {i} of {lane}");
            }
        }
    }
    let breakages: [fn(&mut Plan); 9] = [
        |p| p.buffers[1].host = Some(HostPlace::Arena(32)),
        |p| p.buffers[1].host = Some(HostPlace::Arena(1 << 20)),
        |p| p.buffers[1].host = p.buffers[2].host,
        |p| p.buffers[1].host = None,
        |p| p.buffers[2].slot = p.buffers[1].slot,
        |p| p.buffers[2].slot = Some(99),
        |p| p.cpu[1].outputs[0].offset += 2,
        |p| p.cpu[1].outputs[0].offset += 64,
        |p| p.downloads[3].range = 0..60,
    ];
    for (i, breakage) in breakages.iter().enumerate() {
        let mut broken = good.clone();
        breakage(&mut broken);
        assert!(verify(&broken).is_err(), "breakage {i}");
    }
}

#[test]
fn random_plans_verify_and_lose_their_proof_without_any_one_wait() {
    use rand::{RngExt as _, SeedableRng};
    for seed in 200..260 {
        let graph = toy::random_graph(seed);
        let mut rng = rand_pcg::Pcg32::seed_from_u64(seed);
        let places: Vec<Place> = graph
            .nodes
            .iter()
            .map(|_| if rng.random_bool(0.5) { Place::Cpu } else { Place::Gpu })
            .collect();
        let good = plan(&graph, &places);
        for lane in Lane::ALL {
            for (i, step) in good.lane(lane).iter().enumerate() {
                if let Step::Wait(event) = *step {
                    let mut broken = good.clone();
                    broken.lanes[lane.index()].remove(i);
                    // Without its signal either, so that only the missing order can be found.
                    for steps in &mut broken.lanes {
                        steps.retain(|s| *s != Step::Signal(event));
                    }
                    assert!(verify(&broken).is_err(), "seed {seed}, event {event} of {lane}");
                }
            }
        }
    }
}

#[test]
fn unsupported_places_are_refused_by_name() {
    let graph = toy::diamond();
    let options = NullOptions { unsupported: vec!["Flip"], ..NullOptions::default() };
    let null = NullAccelerator::new(options);
    let support = Support::of(&graph, Some(&*null));
    let mut placement = Placement::uniform(&graph, Place::Gpu);
    let error = compile(&graph, &placement, &support, None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "node 'b' (Flip) cannot be placed on gpu: null does not run Flip; place it on cpu"
    );
    placement.places[1] = Place::Cpu;
    assert!(compile(&graph, &placement, &support, None).is_ok());
    placement.places[1] = Place::Split(0.5);
    assert!(compile(&graph, &placement, &support, None).is_err());
    placement.places.pop();
    let error = compile(&graph, &placement, &support, None).unwrap_err();
    assert!(matches!(error, CompileError::Length { places: 4, nodes: 5 }), "{error}");
}

/// Every share of every operator that is said to split compiles, whatever the batch: a windowed
/// attention, say, splits between images only.
#[test]
fn every_share_of_the_paper_models_compiles() {
    let null = NullAccelerator::new(NullOptions::default());
    for name in ["resnet18", "mobilenet_v3_small", "swin_t"] {
        let model = zoo::build(name).unwrap();
        for batch in [1, 3, 8] {
            let shapes = Shapes::from([("input".to_owned(), vec![batch, 3, 224, 224])]);
            let graph = passes::optimize(specialize(&model, &shapes).unwrap().graph);
            let support = Support::of(&graph, Some(&*null));
            let splits = support.split.iter().flatten();
            assert!(splits.clone().count() > 15, "{name} has operators that split");
            assert!(splits.clone().any(|s| s.unit > 1) == (name == "swin_t" && batch > 1));
            for share in [0.04, 0.3, 0.5, 0.82, 0.97] {
                let places = support
                    .split
                    .iter()
                    .map(|split| if split.is_some() { Place::Split(share) } else { Place::Cpu })
                    .collect();
                let plan = compile(&graph, &Placement { places }, &support, None);
                assert!(
                    plan.is_ok(),
                    "{name}, batch {batch}, share {share}: {}",
                    plan.unwrap_err()
                );
            }
        }
    }
}
