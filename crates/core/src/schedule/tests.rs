//! Policies on known costs.

use super::*;
use crate::{
    analyze::analyze,
    backend::{NullAccelerator, NullOptions},
    profile::{Cost, Link, NodeCosts, Power, PowerSource},
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
        sparse_efficiency: 0.0,
    }
}

fn problem<'a>(
    graph: &'a Graph,
    support: &'a Support,
    topology: &'a Topology,
    analysis: &'a Analysis,
    profile: &'a Profile,
) -> Problem<'a> {
    Problem {
        graph,
        support,
        topology,
        analysis,
        profile,
        thresholds: &[],
        state: HardwareState::default(),
        pins: &[],
        objective: Objective::Latency,
        learned: None,
    }
}

fn solve<R>(graph: &Graph, profile: &Profile, f: impl FnOnce(&Problem<'_>) -> R) -> R {
    let null = NullAccelerator::new(NullOptions::default());
    let support = Support::of(graph, Some(&*null));
    f(&problem(graph, &support, &Topology::of(graph, &support), &analyze(graph), profile))
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
fn shares_are_whole_parts_first() {
    let graph = toy::blur_chain();
    let p = profile(&graph, &[6000; 4], &[10_000; 4]);
    solve(&graph, &p, |problem| {
        let parts = split::common_parts(problem);
        assert!(parts > 1);
        // 0.375 of the work balances both.
        let below = (0.375 * parts as f32).floor() / parts as f32;
        let shares: Vec<f32> = split::variants(problem).iter().map(|v| v.share).collect();
        assert!(shares[0] == below && shares[3] == below + 1.0 / parts as f32, "{shares:?}");
        let found = candidates(problem).unwrap();
        let extents = |c: &Candidate| -> Vec<usize> {
            let axes = problem.support.split.iter().flatten();
            let shares = c.placement.places.iter().map(|place| match place {
                Place::Split(share) => *share,
                Place::Gpu => 1.0,
                Place::Cpu => 0.0,
            });
            axes.zip(shares).map(|(axis, share)| axis.gpu_extent(share)).collect()
        };
        // No two come to the same.
        for (i, a) in found.iter().enumerate() {
            assert!(found[..i].iter().all(|b| extents(a) != extents(b)), "{}", a.name);
        }
    });
}

#[test]
fn finalists_differ_in_what_they_give_the_gpu() {
    let candidate = |name: &str, gpu_ns: u64, score: f64| Candidate {
        name: name.to_owned(),
        placement: Placement::default(),
        timeline: Timeline {
            events: vec![],
            makespan_ns: 0,
            busy_ns: [0, gpu_ns, 0, 0],
            copied_bytes: (0, 0),
        },
        score,
    };
    let all = [
        candidate("a", 700, 1.0),
        candidate("b", 705, 1.1),
        candidate("c", 800, 1.2),
        candidate("gpu", 1000, 1.3),
        candidate("d", 600, 1.4),
        candidate("cpu", 0, 2.0),
    ];
    let names = |most| -> Vec<&str> {
        finalists(&all, [], most).into_iter().map(|c| c.name.as_str()).collect()
    };
    assert_eq!(names(2), ["cpu", "gpu", "a", "c"]);
    assert_eq!(names(9), ["cpu", "gpu", "a", "c", "d", "b"]);
    // What was measured comes first, and what gives the GPU as much last.
    let measured = [candidate("m", 790, 9.0)];
    let chosen: Vec<&str> =
        finalists(&all, &measured, 4).into_iter().map(|c| c.name.as_str()).collect();
    assert_eq!(chosen, ["cpu", "gpu", "m", "a", "d", "b"]);
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

/// A graph with branches and costs that differ, with rows that can be split.
fn random_graph(seed: u64) -> (std::sync::Arc<Graph>, Profile) {
    use rand::{RngExt as _, SeedableRng};
    let mut rng = rand_pcg::Pcg32::seed_from_u64(seed);
    let mut g = ToyGraph::new("random");
    let mut values = vec![g.input("x", &[8, 4])];
    for i in 0..7 {
        let a = values[rng.random_range(values.len().saturating_sub(3)..values.len())];
        let b = values[rng.random_range(0..values.len())];
        values.push(match rng.random_range(0..3) {
            0 => g.add(&format!("n{i}"), Toy::Affine, &[a]),
            1 => g.add(&format!("n{i}"), Toy::Flip, &[a]),
            _ => g.add(&format!("n{i}"), Toy::Sum, &[a, b]),
        });
    }
    for value in &values[5..] {
        g = g.output(*value);
    }
    let graph = g.finish();
    let mut costs = || (0..7).map(|_| rng.random_range(200..4000)).collect::<Vec<u64>>();
    let (cpu, gpu) = (costs(), costs());
    let mut p = profile(&graph, &cpu, &gpu);
    for node in &mut p.nodes {
        for cost in [&mut node.cpu, &mut node.gpu].into_iter().flatten() {
            cost.fixed_ns = cost.latency_ns / 10;
        }
    }
    p.handoff_ns = 20;
    (graph, p)
}

#[test]
fn optimal_is_never_beaten() {
    for seed in 0..30 {
        let (graph, p) = random_graph(seed);
        solve(&graph, &p, |problem| {
            let score = |policy: Policy| {
                problem.judge(&policy.scheduler().place(problem).unwrap()).unwrap().2
            };
            let optimal = score(Policy::Optimal);
            assert!(optimal <= exhaustive(problem), "seed {seed}");
            for policy in Policy::ALL {
                assert!(optimal <= score(policy), "seed {seed}: {policy}");
            }
        });
    }
}

#[test]
fn optimal_refuses_what_it_cannot_search() {
    let mut g = ToyGraph::new("long");
    let mut x = g.input("x", &[8, 4]);
    for i in 0..MOST_OPERATORS + 1 {
        x = g.add(&format!("n{i}"), Toy::Affine, &[x]);
    }
    let graph = g.output(x).finish();
    let costs = [1000; MOST_OPERATORS + 1];
    solve(&graph, &profile(&graph, &costs, &costs), |problem| {
        let error = Optimal.place(problem).unwrap_err();
        assert!(error.to_string().contains("17"), "{error}");
    });
}

#[test]
fn a_walk_is_near_the_simulation() {
    let mut worst: f64 = 0.0;
    for seed in 0..40 {
        let (graph, p) = random_graph(seed);
        solve(&graph, &p, |problem| {
            for policy in [Policy::Cpu, Policy::Gpu, Policy::Heft, Policy::Codl, Policy::Split] {
                let placement = policy.scheduler().place(problem).unwrap();
                let simulated = problem.judge(&placement).unwrap().2;
                let mut walk = Walk::new(problem.topology);
                let estimate = problem.estimate(&placement).unwrap();
                for id in problem.topology.running() {
                    let seen = walk.look(problem.ground(), id, placement.places[id.index()]);
                    assert_eq!(seen, walk.step(problem.ground(), id, placement.places[id.index()]));
                }
                let finish = walk.finish(problem.ground());
                assert_eq!(estimate, finish.trunc());
                worst = worst.max((finish / simulated - 1.0).abs());
            }
        });
    }
    // The plan orders independent work by the path behind it, the walk by the graph.
    assert!(worst < 0.35, "{worst}");
}

#[test]
fn a_walk_goes_back() {
    let (graph, p) = random_graph(3);
    solve(&graph, &p, |problem| {
        let mut walk = Walk::new(problem.topology);
        let order: Vec<NodeId> = problem.topology.running().collect();
        walk.step(problem.ground(), order[0], Place::Gpu);
        let (mark, before) = (walk.mark(), walk.finish(problem.ground()));
        for &id in &order[1..] {
            walk.step(problem.ground(), id, Place::Split(0.5));
        }
        let after = walk.finish(problem.ground());
        walk.rewind(mark);
        assert_eq!(walk.finish(problem.ground()), before);
        for &id in &order[1..] {
            walk.step(problem.ground(), id, Place::Split(0.5));
        }
        assert_eq!(walk.finish(problem.ground()), after);
    });
}

#[test]
fn codl_divides_what_neither_processor_does_well() {
    let graph = toy::blur_chain();
    let p = profile(&graph, &[1_000_000; 4], &[1_000_000; 4]);
    solve(&graph, &p, |problem| {
        let placement = CoDl.place(problem).unwrap();
        assert_eq!(placement.counts().2, 4, "{placement}");
        assert!(problem.judge(&placement).unwrap().2 < 2_100_000.0);
    });
}

#[test]
fn ios_runs_independent_groups_at_the_same_time() {
    let graph = toy::diamond();
    let p = profile(&graph, &[10_000; 5], &[10_000; 5]);
    solve(&graph, &p, |problem| {
        let placement = Ios.place(problem).unwrap();
        let (cpu, gpu, _) = placement.counts();
        assert!(cpu > 0 && gpu > 0, "{placement}");
        assert!(problem.judge(&placement).unwrap().2 <= 1.1 * exhaustive(problem));
    });
}

#[test]
fn thresholds_send_quadrants_to_their_processors() {
    let mut g = ToyGraph::new("quadrants");
    let x = g.input("x", &[64, 64]);
    let w = g.constant("w", &[64, 64]);
    let a = g.add("a", Toy::Product, &[x, w]);
    let b = g.add("b", Toy::Affine, &[a]);
    let graph = g.output(b).finish();
    let p = profile(&graph, &[1000; 2], &[1000; 2]);
    let place = |intensity: f64, sparsity: f64| {
        solve(&graph, &p, |problem| {
            let thresholds = vec![Thresholds { sparsity, intensity }; 2];
            let problem = Problem { thresholds: &thresholds, ..*problem };
            Threshold.place(&problem).unwrap().places
        })
    };
    // Dense and intense; the light operator behind it stays there.
    assert_eq!(place(0.1, 0.9), [Place::Gpu; 2]);
    let intensity = solve(&graph, &p, |problem| problem.analysis.nodes[1].intensity());
    assert_eq!(place(intensity * 1.01, 0.9)[0], Place::Cpu, "its input is on the host");
    // A third of the weight is zeros.
    assert_eq!(place(0.1, 0.3)[0], Place::Cpu);
}

#[test]
fn pins_bind_every_policy() {
    let graph = toy::diamond();
    let p = profile(&graph, &[10; 5], &[1_000_000; 5]);
    let null = NullAccelerator::new(NullOptions::default());
    let support = Support::of(&graph, Some(&*null));
    let pins = resolve_pins(&graph, &support, &["b=gpu".parse().unwrap()]).unwrap();
    let (topology, analysis) = (Topology::of(&graph, &support), analyze(&graph));
    let problem = Problem { pins: &pins, ..problem(&graph, &support, &topology, &analysis, &p) };
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
    let (topology, analysis) = (Topology::of(&graph, &support), analyze(&graph));
    let place = |p: &Profile| {
        let problem = Problem { objective, ..problem(&graph, &support, &topology, &analysis, p) };
        Policy::Auto.scheduler().place(&problem)
    };
    let error = place(&p).unwrap_err().to_string();
    assert!(error.contains("--objective energy"), "{error}");
    p.power = Some(Power { idle_w: 1.0, cpu_w: 100.0, gpu_w: 1.0, source: PowerSource::Modelled });
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
