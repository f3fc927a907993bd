//! Predicted and measured runs as a Chrome trace, for Perfetto: one process row per source, one
//! thread row per lane.

use serde_json::{Value, json};

use super::Trace;
use crate::{
    plan::{Lane, Plan, Step},
    schedule::Timeline,
};

/// A run to draw.
#[derive(Clone, Copy, Debug)]
pub enum TraceSource<'a> {
    /// The simulator's prediction.
    Predicted(&'a Timeline),
    /// A measured run.
    Measured(&'a Trace),
}

/// The runs of one plan as JSON in Chrome's trace event format.
pub fn chrome_trace(plan: &Plan, sources: &[TraceSource<'_>]) -> String {
    let mut events = Vec::new();
    for (i, source) in sources.iter().enumerate() {
        let pid = i + 1;
        let (label, simulated) = match source {
            TraceSource::Predicted(_) => ("predicted (simulated)", true),
            TraceSource::Measured(_) => ("measured", false),
        };
        let name = format!("{} {label}", plan.model);
        events.push(json!({"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}));
        for lane in Lane::ALL {
            events.push(json!({
                "ph": "M", "pid": pid, "tid": lane.index(), "name": "thread_name",
                "args": {"name": lane.name()},
            }));
        }
        let mut add = |lane: Lane, index: usize, start_ns: u64, end_ns: u64| {
            let step = plan.lane(lane)[index];
            let mut args = details(plan, lane, step);
            args["simulated"] = json!(simulated);
            events.push(json!({
                "ph": "X", "pid": pid, "tid": lane.index(), "cat": lane.name(),
                "name": plan.step_name(lane, step), "args": args,
                "ts": start_ns as f64 / 1e3, "dur": end_ns.saturating_sub(start_ns) as f64 / 1e3,
            }));
        };
        match source {
            TraceSource::Predicted(timeline) => {
                for e in &timeline.events {
                    add(e.lane, e.index, e.start_ns, e.end_ns);
                }
            }
            TraceSource::Measured(trace) => {
                for e in &trace.events {
                    add(e.lane, e.index, e.start_ns, e.end_ns);
                }
            }
        }
    }
    json!({"displayTimeUnit": "ms", "traceEvents": events}).to_string()
}

fn details(plan: &Plan, lane: Lane, step: Step) -> Value {
    match step {
        Step::Run(task) => json!({"op_type": plan.cpu[task].op.op_type()}),
        Step::Submit(segment) => {
            let tasks = &plan.gpu[plan.segments[segment].clone()];
            let names: Vec<String> =
                tasks.iter().map(|t| format!("{} ({})", t.name, t.op.op_type())).collect();
            json!({"tasks": names})
        }
        Step::Copy(copy) => {
            let copies = if lane == Lane::HostToDevice { &plan.uploads } else { &plan.downloads };
            json!({"bytes": copies[copy].range.len()})
        }
        Step::Signal(_) | Step::Wait(_) => json!({}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::{NullAccelerator, NullOptions},
        engine::TraceEvent,
        plan::{Place, Placement, Support, compile},
        toy,
    };

    #[test]
    fn predicted_and_measured_are_separate_rows() {
        let graph = toy::diamond();
        let null = NullAccelerator::new(NullOptions::default());
        let support = Support::of(&graph, Some(&*null));
        let plan =
            compile(&graph, &Placement::uniform(&graph, Place::Gpu), &support, None).unwrap();
        let event = |lane, index| TraceEvent {
            lane,
            index,
            name: String::new(),
            start_ns: 1500,
            end_ns: 4000,
        };
        let submit = plan.lane(Lane::Gpu).iter().position(|s| matches!(s, Step::Submit(_)));
        let trace = Trace { events: vec![event(Lane::Gpu, submit.unwrap())], makespan_ns: 4000 };
        let timeline =
            Timeline { events: Vec::new(), makespan_ns: 0, busy_ns: [0; 4], copied_bytes: (0, 0) };
        let sources = [TraceSource::Predicted(&timeline), TraceSource::Measured(&trace)];
        let json: Value = serde_json::from_str(&chrome_trace(&plan, &sources)).unwrap();
        let events = json["traceEvents"].as_array().unwrap();
        let rows: Vec<&str> = events.iter().filter_map(|e| e["args"]["name"].as_str()).collect();
        assert!(rows.contains(&"diamond predicted (simulated)"));
        assert!(rows.contains(&"diamond measured"));
        let run = events.iter().find(|e| e["ph"] == "X").unwrap();
        assert_eq!((run["ts"].as_f64(), run["dur"].as_f64()), (Some(1.5), Some(2.5)));
        assert_eq!(run["args"]["tasks"].as_array().unwrap().len(), 5);
        assert_eq!(run["pid"], 2);
    }
}
