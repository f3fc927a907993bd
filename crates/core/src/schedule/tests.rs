//! Policies on known costs.

use super::*;
use crate::{
    backend::{NullAccelerator, NullOptions},
    profile::{Cost, Link, NodeCosts, Power},
    toy::{self, Toy, ToyGraph},
};

fn profile(graph: &Graph, cpu_ns: &[u64], gpu_ns: &[u64]) -> Profile {
    let cost = |ns: u64| Some(Cost { latency_ns: ns, fixed_ns: 0 });
    Profile {
        simulated: true,
        machine: "test".into(),
        nodes: graph
            .nodes
            .iter()
            .enumerate()
            .map(|(i, n)| NodeCosts {
                name: n.name.clone(),
                op_type: n.op.op_type().into(),
                cpu: cost(cpu_ns[i]),
                gpu: cost(gpu_ns[i]),
            })
            .collect(),
        upload: Link { latency_ns: 100, bytes_per_s: 1e9 },
        download: Link { latency_ns: 100, bytes_per_s: 1e9 },
        submit_ns: 10,
        handoff_ns: 0,
        contention: Default::default(),
        power: None,
    }
}

fn solve<R>(graph: &Graph, profile: &Profile, f: impl FnOnce(&Problem<'_>) -> R) -> R {
    let null = NullAccelerator::new(NullOptions::default());
    let support = Support::of(graph, Some(&*null));
    let objective = Objective::Latency;
    f(&Problem { graph, support: &support, profile, pins: &[], objective })
}

/// Every placement over cpu and gpu: the oracle.
fn exhaustive(problem: &Problem<'_>) -> f64 {
    let nodes = problem.graph.nodes.len();
    (0..1u32 << nodes)
        .map(|bits| {
            let place = |i| if bits >> i & 1 == 1 { Place::Gpu } else { Place::Cpu };
            let placement = Placement { places: (0..nodes).map(place).collect() };
            problem.judge(&placement).unwrap().2
        })
        .fold(f64::INFINITY, f64::min)
}

#[test]
fn simulation_adds_up() {
    let graph = toy::blur_chain();
    let p = profile(&graph, &[1000; 4], &[300; 4]);
    solve(&graph, &p, |problem| {
        let cpu = problem.judge(&CpuOnly.place(problem).unwrap()).unwrap().1;
        assert_eq!(cpu.makespan_ns, 4000);
        assert_eq!(cpu.busy_ns, [4000, 0, 0, 0]);
        // Upload 100 + 128, submit 10, four kernels, download 100 + 128.
        let (plan, gpu, _) = problem.judge(&GpuOnly.place(problem).unwrap()).unwrap();
        assert_eq!(gpu.makespan_ns, 228 + 10 + 1200 + 228);
        assert_eq!(gpu.copied_bytes, (128, 128));
        assert_eq!(simulate(&plan, &p), gpu);
        assert_eq!(gpu.events.len(), 3);
    });
}

#[test]
fn contention_slows_what_overlaps_only() {
    let graph = toy::diamond();
    let mut p = profile(&graph, &[1000; 5], &[1000; 5]);
    let places = [Place::Gpu, Place::Gpu, Place::Cpu, Place::Cpu, Place::Cpu];
    let placement = Placement { places: places.to_vec() };
    let time =
        |p: &Profile| solve(&graph, p, |problem| problem.judge(&placement).unwrap().1.makespan_ns);
    let free = time(&p);
    // GPU: upload 228, submit 10, 2000, download 228; then the join.
    assert_eq!(free, 228 + 10 + 2000 + 228 + 1000);
    p.contention.gpu = 2.0;
    let contended = time(&p);
    // The CPU's 2000 ns overlap the GPU's from 228 on: it advances half as fast meanwhile.
    assert_eq!(contended, free + (2000 - 228) / 2);
}

#[test]
fn policies_leave_the_slow_processor() {
    let graph = toy::diamond();
    for (cpu, gpu, place) in [(1_000_000, 10, Place::Gpu), (10, 1_000_000, Place::Cpu)] {
        let p = profile(&graph, &[cpu; 5], &[gpu; 5]);
        solve(&graph, &p, |problem| {
            for policy in [Policy::Greedy, Policy::Heft, Policy::Dp, Policy::Auto] {
                let placement = policy.scheduler().place(problem).unwrap();
                assert_eq!(placement.places, [place; 5], "{policy}");
            }
        });
    }
}

#[test]
fn dp_is_exact_on_chains() {
    use rand::{RngExt as _, SeedableRng};
    let mut g = ToyGraph::new("chain");
    let mut x = g.input("x", &[8, 4]);
    for i in 0..8 {
        x = g.add(&format!("n{i}"), Toy::Flip, &[x]);
    }
    let graph = g.output(x).finish();
    for seed in 0..20 {
        let mut rng = rand_pcg::Pcg32::seed_from_u64(seed);
        let mut costs = || (0..8).map(|_| rng.random_range(50..1500)).collect::<Vec<u64>>();
        let p = profile(&graph, &costs(), &costs());
        solve(&graph, &p, |problem| {
            let placement = Dp::default().place(problem).unwrap();
            let score = problem.judge(&placement).unwrap().2;
            assert_eq!(score, exhaustive(problem), "seed {seed}: {placement}");
        });
    }
}

#[test]
fn parallel_branches_use_both_processors() {
    let graph = toy::diamond();
    let p = profile(&graph, &[10_000; 5], &[10_000; 5]);
    solve(&graph, &p, |problem| {
        let best = exhaustive(problem);
        for policy in [Policy::Greedy, Policy::Heft, Policy::Dp] {
            let placement = policy.scheduler().place(problem).unwrap();
            let (cpu, gpu, _) = placement.counts();
            assert!(cpu > 0 && gpu > 0, "{policy}: {placement}");
            let score = problem.judge(&placement).unwrap().2;
            assert!(score <= 1.1 * best, "{policy}: {score} > {best}");
        }
        let candidates = candidates(problem).unwrap();
        assert!(candidates[0].score <= best);
        assert!(candidates.iter().any(|c| c.name == "cpu"));
        assert!(candidates.is_sorted_by(|a, b| a.score <= b.score));
    });
}

#[test]
fn auto_splits_where_only_splitting_helps() {
    let graph = toy::blur_chain();
    let p = profile(&graph, &[1_000_000; 4], &[1_000_000; 4]);
    solve(&graph, &p, |problem| {
        let best = candidates(problem).unwrap().swap_remove(0);
        assert!(best.placement.counts().2 == 4, "{}: {}", best.name, best.placement);
        assert!(best.score < 2_100_000.0);
    });
}

#[test]
fn pins_bind_every_policy() {
    let graph = toy::diamond();
    let p = profile(&graph, &[10; 5], &[1_000_000; 5]);
    let null = NullAccelerator::new(NullOptions::default());
    let support = Support::of(&graph, Some(&*null));
    let pins = resolve_pins(&graph, &support, &["b=gpu".parse().unwrap()]).unwrap();
    let objective = Objective::Latency;
    let problem = Problem { graph: &graph, support: &support, profile: &p, pins: &pins, objective };
    for policy in Policy::ALL {
        assert_eq!(policy.scheduler().place(&problem).unwrap().places[1], Place::Gpu, "{policy}");
    }
}

#[test]
fn energy_needs_power_figures() {
    let graph = toy::blur_chain();
    let mut p = profile(&graph, &[1000; 4], &[900; 4]);
    let null = NullAccelerator::new(NullOptions::default());
    let support = Support::of(&graph, Some(&*null));
    let objective = Objective::Energy;
    let place = |p: &Profile| {
        let problem =
            Problem { graph: &graph, support: &support, profile: p, pins: &[], objective };
        Policy::Auto.scheduler().place(&problem)
    };
    let error = place(&p).unwrap_err().to_string();
    assert!(error.contains("--objective energy"), "{error}");
    p.power = Some(Power { idle_w: 1.0, cpu_w: 100.0, gpu_w: 1.0 });
    assert_eq!(place(&p).unwrap().places, [Place::Gpu; 4]);
}

#[test]
fn names_read_back() {
    for policy in Policy::ALL {
        assert_eq!(policy.name().parse(), Ok(policy));
    }
    let error = "fast".parse::<Policy>().unwrap_err();
    assert!(error.contains("greedy") && error.contains("'fast'"), "{error}");
    for objective in Objective::ALL {
        assert_eq!(objective.name().parse(), Ok(objective));
    }
    assert!("speed".parse::<Objective>().is_err());
}
