//! temp
use sparoa_core::{engine::*, plan::*, tensor::*, *};
use sparoa_kernels::pool::Pool;
use std::{collections::BTreeMap, sync::Arc, time::Instant};
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let threads: usize = args[2].parse().unwrap();
    let batch: usize = args[3].parse().unwrap();
    let t = Instant::now();
    let model = if args[1].starts_with("zoo:") {
        zoo::build(&args[1][4..]).unwrap()
    } else {
        onnx::load(std::path::Path::new(&args[1]), &Default::default()).unwrap()
    };
    eprintln!("load {:?}", t.elapsed());
    let mut shapes = BTreeMap::new();
    let i = &model.inputs[0];
    if i.dims.as_ref().unwrap().len() == 4 && args.len() <= 4 {
        shapes.insert(i.name.clone(), vec![batch, 3, 224, 224]);
    }
    for s in &args[4.min(args.len())..] {
        let (n, d) = s.rsplit_once(':').unwrap();
        shapes.insert(n.into(), d.split('x').map(|v| v.parse().unwrap()).collect());
    }
    let t = Instant::now();
    let s = ir::specialize(&model, &shapes).unwrap();
    eprintln!("specialize {:?} {} nodes", t.elapsed(), s.graph.nodes.len());
    let t = Instant::now();
    let g = ir::passes::optimize(s.graph);
    eprintln!("optimize {:?} {} nodes", t.elapsed(), g.nodes.len());
    let g = Arc::new(g);
    let pool = Arc::new(Pool::new(threads));
    let t = Instant::now();
    let support = Support::of(&g, None);
    let plan = compile(&g, &Placement::uniform(&g, Place::Cpu), &support, None).unwrap();
    eprintln!("compile {:?} arena {}", t.elapsed(), plan.arena_bytes);
    let t = Instant::now();
    let cache = KernelCache::new();
    let mut e = Engine::new(plan, &g, &cache, &pool, None).unwrap();
    eprintln!("prepare {:?}", t.elapsed());
    let inputs: Vec<Tensor> = g
        .inputs
        .iter()
        .map(|&v| {
            let mut t = Tensor::zeros(g.value(v).ty.clone());
            if let Some(x) = t.as_slice_mut::<f32>() {
                for (i, v) in x.iter_mut().enumerate() {
                    *v = ((i * 2654435761usize >> 8) % 1000) as f32 / 500.0 - 1.0;
                }
            }
            t
        })
        .collect();
    let refs: Vec<&Tensor> = inputs.iter().collect();
    let mut outs = e.new_outputs();
    e.run(&refs, &mut outs).unwrap();
    let mut times = vec![];
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < 2.0 || times.len() < 5 {
        let t = Instant::now();
        e.run(&refs, &mut outs).unwrap();
        times.push(t.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    println!("median {:.3} min {:.3} ms", times[times.len() / 2], times[0]);
    if std::env::var("PROF").is_ok() {
        let mut per: BTreeMap<String, (f64, u64, String)> = BTreeMap::new();
        for _ in 0..5 {
            let tr = e.run_traced(&refs, &mut outs).unwrap();
            for s in &tr.events {
                let en = per.entry(s.name.clone()).or_default();
                let d = (s.end_ns - s.start_ns) as f64;
                en.0 += d / 5.0;
            }
        }
        let mut v: Vec<_> = per.into_iter().collect();
        v.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
        for (k, x) in v.iter().take(40) {
            println!("{:10.1} us {}", x.0 / 1e3, k);
        }
    }
    if std::env::var("GRAPH").is_ok() {
        for n in &g.nodes {
            let io = g.input_operands(n);
            println!(
                "{} {:?} -> {:?} [{}]",
                n.op.op_type(),
                io.iter().flatten().map(|o| o.ty.to_string()).collect::<Vec<_>>(),
                g.output_types(n).iter().map(|t| t.to_string()).collect::<Vec<_>>(),
                n.name
            );
        }
    }
}
