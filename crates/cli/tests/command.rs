//! The command as scripts see it: exit codes, JSON keys, and that simulated figures say so.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use serde_json::Value;

/// Runs the command with a cache of its own, below which it also looks for energy sensors, and no
/// Vulkan driver.
fn sparoa(cache: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sparoa"))
        .args(args)
        .env("XDG_CACHE_HOME", cache)
        .env("SPAROA_SYS_ROOT", cache)
        .env("VK_DRIVER_FILES", "/nonexistent")
        .env("VK_ICD_FILENAMES", "/nonexistent")
        .output()
        .expect("the command starts")
}

fn json(args: &[&str]) -> Value {
    json_in(tempfile::tempdir().unwrap().path(), args)
}

fn json_in(cache: &Path, args: &[&str]) -> Value {
    let output = sparoa(cache, &[args, &["--json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    serde_json::from_slice(&output.stdout).expect("one JSON document")
}

fn failure(args: &[&str]) -> (Option<i32>, String) {
    let cache = tempfile::tempdir().unwrap();
    let output = sparoa(cache.path(), args);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

const MODEL: &str = "zoo:mobilenet_v3_small";

#[test]
fn targets_that_make_no_sense_are_usage_errors() {
    let plan = |rest: &[&str]| failure(&[&["plan", MODEL], rest].concat());
    let (code, error) = plan(&["--target", "jetson-nano"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("'jetson-nano'") && error.contains("jetson-orin-nano"), "{error}");
    for (rest, word) in [
        (&["--target", "jetson-orin-nano", "--threads", "2"][..], "--threads"),
        (&["--target", "jetson-orin-nano", "--device", "cpu"], "--device"),
        (&["--target", "jetson-orin-nano", "--precision", "bf16"], "bf16"),
        (&["--target", "jetson-orin-nano", "--pin", "Conv=sparse"], "Conv=sparse"),
        (&["--target", "jetson-orin-nano", "--pin", "nothing=gpu"], "nothing=gpu"),
        (&["--target", "jetson-orin-nano", "--policy", "best"], "best"),
        (&["--target", "jetson-orin-nano", "--policy", "optimal"], "optimal"),
    ] {
        let (code, error) = plan(rest);
        assert_eq!(code, Some(2), "{rest:?}: {error}");
        assert!(error.contains(word), "{rest:?}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("board.json");
    std::fs::write(&broken, "{}").unwrap();
    let (code, error) = plan(&["--target", broken.to_str().unwrap()]);
    assert_eq!(code, Some(4));
    assert!(error.contains("board.json"), "{error}");
    let (code, error) = failure(&["reproduce", "--target", "jetson-nano"]);
    assert_eq!(code, Some(2), "{error}");
    let (code, error) = failure(&["reproduce", "--model", "alexnet"]);
    assert_eq!(code, Some(3), "{error}");
}

#[test]
fn a_plan_for_a_board_says_that_it_is_simulated_and_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (file, dot, trace, onnx) = (path("p.json"), path("g.dot"), path("t.json"), path("m.onnx"));
    let document = json(&[
        "plan",
        MODEL,
        "--target",
        "jetson-orin-nano",
        "--policy",
        "heft",
        "--objective",
        "edp",
        "--pin",
        "Linear=cpu",
        "-o",
        &file,
        "--dot",
        &dot,
        "--trace",
        &trace,
        "--onnx",
        &onnx,
    ]);
    assert_eq!(document["simulated"], true);
    assert_eq!(document["target"], "jetson-orin-nano");
    assert_eq!(document["plan"]["simulated"], true);
    let predicted = &document["predicted"];
    for key in ["makespan_ms", "cpu_only_ms", "gpu_only_ms", "energy_j", "cpu_only_j"] {
        assert!(predicted[key].as_f64().is_some_and(|v| v > 0.0), "{key}: {predicted}");
    }
    for node in document["nodes"].as_array().unwrap() {
        assert!(node["quadrant"].is_string() && node["thresholds"]["intensity"].is_f64(), "{node}");
        if node["op_type"] == "Linear" {
            assert_eq!(node["place"], "cpu");
        }
    }
    for path in [&dot, &trace, &onnx] {
        assert!(std::fs::metadata(path).unwrap().len() > 0, "{path}");
    }
    let (code, error) = failure(&["run", MODEL, "--plan", &file]);
    assert_eq!(code, Some(4), "{error}");
    assert!(error.contains("Jetson Orin Nano"), "{error}");
}

#[test]
fn pruned_models_are_planned_with_their_zeros() {
    let plan = |model: &str| {
        json(&["plan", model, "--target", "jetson-agx-orin", "--policy", "cpu"])["predicted"]
            .clone()
    };
    let (dense, pruned) = (plan("zoo:resnet18"), plan("zoo:resnet18@p90"));
    assert!(dense["dense_makespan_ms"].is_null());
    assert_eq!(pruned["dense_makespan_ms"], dense["makespan_ms"]);
    assert!(pruned["makespan_ms"].as_f64() < dense["makespan_ms"].as_f64());
}

#[test]
fn zeros_of_activations_make_simulated_kernels_faster() {
    let folder = tempfile::tempdir().unwrap();
    let header = format!(
        "{:<117}\n",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3, 224, 224), }"
    );
    let mut file = [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..]].concat();
    file.extend(header.as_bytes());
    let value = |i: u32| (i.wrapping_mul(2_654_435_761) >> 16) as f32 / 65536.0 - 0.5;
    file.extend((0..3 * 224 * 224).flat_map(|i| value(i).to_le_bytes()));
    std::fs::write(folder.path().join("noise.npy"), file).unwrap();
    let folder = folder.path().to_str().unwrap();
    let target = ["plan", MODEL, "--target", "raspberry-pi-5", "--policy", "cpu"];
    let (plain, counted) = (json(&target), json(&[&target[..], &["--calibrate", folder]].concat()));
    let (plain, predicted) = (&plain["predicted"], &counted["predicted"]);
    assert!(predicted["makespan_ms"].as_f64() < plain["makespan_ms"].as_f64(), "{predicted}");
    assert_eq!(predicted["dense_makespan_ms"], plain["makespan_ms"]);
    let nodes = counted["nodes"].as_array().unwrap();
    assert!(nodes.iter().any(|n| n["kernel"] == "skipping"), "{nodes:?}");

    let (code, error) = failure(&["plan", MODEL, "--calibrate", folder]);
    assert_eq!(code, Some(2));
    assert!(error.contains("--target"), "{error}");
    let (code, error) = failure(&[&target[..], &["--calibrate", "nowhere"]].concat());
    assert_ne!(code, Some(0));
    assert!(error.contains("nowhere"), "{error}");
}

const REDUCED: [&str; 5] = ["reproduce", "--model", "mobilenet_v3_small,resnet18", "--states", "3"];

#[test]
fn reproduce_keeps_its_keys_and_its_figures_for_a_seed() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("r.html").to_str().unwrap().to_owned();
    let first = json(&[&REDUCED[..], &["--html", &page]].concat());
    assert_eq!(first["simulated"], true);
    let targets = first["targets"].as_array().unwrap();
    assert_eq!(targets.len(), 2);
    let names = ["cpu", "gpu", "threshold", "greedy", "heft", "dp", "ios", "codl", "sac"];
    for target in targets {
        assert!(target["target"].as_str().unwrap().starts_with("jetson-"));
        assert_eq!(target["models"][0]["model"], "mobilenet_v3_small");
        for model in target["models"].as_array().unwrap() {
            for name in names {
                let row = &model["policies"][name];
                for key in ["latency_ms", "energy_j", "replanned_latency_ms", "decision_us"] {
                    assert!(row[key].as_f64().is_some_and(|v| v > 0.0), "{name} {key}: {row}");
                }
            }
        }
    }
    assert_eq!(first["pruned"][0]["models"][0]["model"], "resnet18@p90");
    let summary = &first["summary"];
    for key in [
        "mean_speedup_over_baselines",
        "mean_speedup_over_replanned_baselines",
        "max_speedup_over_cpu",
        "energy_saving_vs_best_coexecution",
    ] {
        assert!(summary[key].is_f64(), "{key}");
    }
    assert!(summary["speedup_over"]["codl"].is_f64());
    assert_eq!(summary["paper"]["max_speedup_over_cpu"], 50.7);
    let settings: Vec<&Value> =
        summary["settings"].as_array().unwrap().iter().map(|s| &s["setting"]).collect();
    assert_eq!(settings, ["compiled", "eager", "vulkan"]);

    let html = std::fs::read_to_string(&page).unwrap();
    let captions: Vec<&str> = html
        .split("<caption>")
        .chain(html.split("<figcaption>"))
        .filter_map(|part| part.split_once("caption>").map(|(caption, _)| caption))
        .collect();
    assert!(captions.len() > 10);
    assert!(captions.iter().all(|c| c.contains("simulated")), "{captions:?}");
    assert!(!html.contains("http://") && !html.contains("<script"), "self-contained");

    let again = json(&REDUCED);
    assert_eq!(timeless(first.clone()), timeless(again));
    let other = json(&[&REDUCED[..], &["--seed", "2"]].concat());
    assert_ne!(timeless(first), timeless(other));
}

/// Without what depends on the computer that simulates.
fn timeless(mut value: Value) -> Value {
    match &mut value {
        Value::Object(map) => {
            map.remove("decision_us");
            map.values_mut().for_each(|v| *v = timeless(v.take()));
        }
        Value::Array(list) => list.iter_mut().for_each(|v| *v = timeless(v.take())),
        _ => {}
    }
    value
}

#[test]
fn without_a_gpu_bench_adds_what_a_board_would_do() {
    let quick = ["--min-time-s", "0", "--min-iters", "1", "--warmup-ms", "0"];
    let document = json(&[&["bench", MODEL][..], &quick].concat());
    let devices = document["environment"]["devices"].as_array().unwrap();
    if devices.iter().any(|d| d["device"] == "gpu" && d["software"] == false) {
        println!("skipped: this machine has a GPU");
        return;
    }
    let results = document["results"].as_array().unwrap();
    assert_eq!((&results[0]["policy"], &results[0]["simulated"]), (&"cpu".into(), &false.into()));
    assert!(results[0].get("target").is_none());
    let simulated: Vec<&Value> = results.iter().filter(|r| r["simulated"] == true).collect();
    let policies: Vec<&Value> = simulated.iter().map(|r| &r["policy"]).collect();
    assert_eq!(policies, ["cpu", "gpu", "auto"]);
    for row in &simulated {
        assert_eq!(row["target"], "jetson-orin-nano");
        assert!(row["first_inference_ms"].is_null() && row["energy_j"].is_f64(), "{row}");
    }
    let p50 = |row: &Value| row["latency_ms"]["p50"].as_f64().unwrap();
    assert!(p50(simulated[2]) <= p50(simulated[0]).min(p50(simulated[1])));

    let named = json(&[&["bench", MODEL, "--policy", "cpu"][..], &quick].concat());
    assert_eq!(named["results"].as_array().unwrap().len(), 1, "only what was asked for");
}

#[test]
fn bench_finds_a_batch_and_says_how() {
    let quick = ["--policy", "cpu", "--min-time-s", "0", "--min-iters", "1", "--warmup-ms", "0"];
    let auto = [&["bench", MODEL, "--batch", "auto"][..], &quick].concat();
    let document = json(&[&auto[..], &["--memory-limit", "32M"]].concat());
    let row = &document["results"][0];
    let search = &row["batch_search"];
    assert_eq!(search["chosen"], row["batch"]);
    assert!(search["reason"].is_string());
    let probes = search["probes"].as_array().unwrap();
    assert!((1..=6).contains(&probes.len()) && probes[0]["batch"] == 1, "{search}");
    for probe in probes {
        if let Some(why) = probe["error"].as_str() {
            assert!(why.contains("bytes more than --memory-limit"), "{probe}");
            continue;
        }
        assert!(probe["latency_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{probe}");
        assert!(probe["bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{probe}");
    }
    for (rest, word) in [
        (&["--batch", "auto", "--slo-ms", "0.001"][..], "0.001 ms"),
        (&["--batch", "auto", "--slo-ms", "nan"], "--slo-ms"),
        (&["--memory-limit", "1.5G"], "512M"),
        (&["--slo-ms", "5"], "--batch auto"),
        (&["--batch", "0"], "--batch"),
    ] {
        let (code, error) = failure(&[&["bench", MODEL][..], &quick, rest].concat());
        assert_eq!(code, Some(2), "{rest:?}: {error}");
        assert!(error.contains(word), "{rest:?}: {error}");
    }
}

#[test]
fn devices_lists_the_profiles() {
    let document = json(&["devices"]);
    let profiles = document["profiles"].as_array().unwrap();
    assert!(profiles.contains(&"jetson-agx-orin".into()));
}

#[test]
fn doctor_answers_every_check_and_says_what_to_do() {
    let document = json(&["doctor"]);
    let findings = document["findings"].as_array().unwrap();
    assert!(findings.len() > 15, "{document}");
    for f in findings {
        let status = f["status"].as_str().unwrap();
        assert!(["ok", "warn", "problem", "unavailable"].contains(&status), "{f}");
        assert!(
            !f["check"].as_str().unwrap().is_empty() && !f["found"].as_str().unwrap().is_empty()
        );
        if ["warn", "problem"].contains(&status) {
            assert!(!f["advice"].as_str().unwrap().is_empty(), "{f}");
        }
    }
    let status = |check: &str| {
        let finding = findings.iter().find(|f| f["check"] == check).expect(check);
        finding["status"].as_str().unwrap().to_owned()
    };
    assert_ne!(status("gpu-driver"), "ok", "there is no Vulkan driver");
    // What is not fine is recorded with every measurement.
    let environment = &document["environment"];
    let noted = environment["doctor"].as_array().unwrap();
    let fine = findings.iter().filter(|f| f["status"] == "ok").count();
    assert_eq!(noted.len() + fine, findings.len());
    for key in ["governor", "power_mode", "cgroup_cpus"] {
        assert!(environment.as_object().unwrap().contains_key(key), "{key}");
    }
    assert!(environment["sensors"].get("cpu_clock").is_some());

    let cache = tempfile::tempdir().unwrap();
    let output = sparoa(cache.path(), &["doctor", "--threads", "1"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("cpu-governor") && text.contains(" unavailable, "), "{text}");
}

#[test]
fn without_sensors_energy_is_modelled_and_can_be_the_objective() {
    let quick = ["--min-time-s", "0", "--min-iters", "2", "--warmup-ms", "0"];
    let energy = ["--policy", "cpu,auto", "--objective", "energy"];
    let document = json(&[&["bench", MODEL][..], &energy, &quick].concat());
    for row in document["results"].as_array().unwrap() {
        assert_eq!(
            (&row["energy_method"], &row["energy_covers"]),
            (&"modelled".into(), &"board".into())
        );
        let source = row["energy_sources"][0].as_str().unwrap();
        assert!(source.starts_with("modelled: "), "{row}");
        let (joules, watts) =
            (row["energy_j"].as_f64().unwrap(), row["average_w"].as_f64().unwrap());
        let mean_s = row["latency_ms"]["mean"].as_f64().unwrap() / 1e3;
        assert!((joules / mean_s / watts - 1.0).abs() < 1e-3, "{row}");
    }
    let predicted = json(&["plan", MODEL, "--objective", "edp"])["predicted"].clone();
    assert_eq!(predicted["energy_method"], "modelled");
    for key in ["energy_j", "average_w", "cpu_only_j"] {
        assert!(predicted[key].as_f64().is_some_and(|v| v > 0.0), "{key}: {predicted}");
    }
    let devices = json(&["devices"]);
    assert_eq!(devices["energy_sensors"], Value::Array(Vec::new()));
    assert!(devices["energy_modelled"].as_str().unwrap().starts_with("modelled: "));
    let cache = tempfile::tempdir().unwrap();
    let output = sparoa(cache.path(), &[&["bench", MODEL, "--policy", "cpu"][..], &quick].concat());
    assert!(String::from_utf8_lossy(&output.stdout).contains(" (modelled)"), "{output:?}");
}

#[test]
fn a_counter_is_read_where_there_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let zone = dir.path().join("sys/class/powercap/intel-rapl:0");
    fs::create_dir_all(&zone).unwrap();
    let write = |file: &str, text: &str| {
        fs::write(zone.join("new"), text).unwrap();
        fs::rename(zone.join("new"), zone.join(file)).unwrap();
    };
    write("name", "package-0\n");
    write("max_energy_range_uj", "30000000\n");
    write("energy_uj", "0\n");
    let ended = AtomicBool::new(false);
    let document = std::thread::scope(|scope| {
        scope.spawn(|| {
            let began = Instant::now();
            while !ended.load(Ordering::Relaxed) {
                // 25 W; the counter starts again after 1.2 seconds.
                let uj = began.elapsed().as_micros() * 25 % 30_000_000;
                write("energy_uj", &format!("{uj}\n"));
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let args = ["bench", MODEL, "--policy", "cpu", "--min-time-s", "1", "--min-iters", "1"];
        let document = json_in(dir.path(), &args);
        ended.store(true, Ordering::Relaxed);
        document
    });
    let row = &document["results"][0];
    assert_eq!(row["energy_sources"], Value::Array(vec!["rapl package-0".into()]), "{row}");
    assert_eq!(row["energy_method"], "counter");
    assert_eq!(row["energy_covers"], "cpu package only");
    assert!((20.0..30.0).contains(&row["average_w"].as_f64().unwrap()), "{row}");

    let listed = json_in(dir.path(), &["devices"])["energy_sensors"][0].clone();
    assert_eq!((&listed["name"], &listed["used"]), (&"rapl package-0".into(), &true.into()));
    assert!(listed["reason"].is_null(), "{listed}");
    fs::remove_file(zone.join("energy_uj")).unwrap();
    let listed = json_in(dir.path(), &["devices"])["energy_sensors"][0].clone();
    assert_eq!(listed["used"], false);
    assert!(listed["reason"].as_str().unwrap().contains("energy_uj"), "{listed}");
}

#[test]
fn a_memory_limit_is_kept_or_the_shortfall_is_named() {
    let cache = tempfile::tempdir().unwrap();
    let refused = sparoa(cache.path(), &["plan", MODEL, "--memory-limit", "1M", "--policy", "cpu"]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(error.contains("bytes more than --memory-limit 1048576"), "{error}");
    let kept = json(&["plan", MODEL, "--memory-limit", "1G", "--policy", "cpu"]);
    assert!(kept["placement"].is_object() || kept["nodes"].is_array(), "{kept}");
    let nonsense = sparoa(cache.path(), &["bench", MODEL, "--memory-limit", "1.5G"]);
    assert_eq!(nonsense.status.code(), Some(2));
}

#[test]
fn adapting_without_a_second_processor_says_why() {
    let cache = tempfile::tempdir().unwrap();
    let refused = sparoa(cache.path(), &["bench", MODEL, "--policy", "cpu", "--adapt"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(error.contains("--adapt: ") && error.contains("GPU"), "{error}");
}
