//! In which order each lane performs its actions: list scheduling by longest remaining path, on
//! estimated times. Without a profile, the graph's own order.

use super::{
    Lane,
    dataflow::{Action, Work},
};
use crate::{backend::Device, profile::Profile};

/// A permutation of the actions that respects their dependencies; each lane performs its own in
/// this order.
pub(super) fn order(actions: &[Action], profile: Option<&Profile>) -> Vec<usize> {
    let Some(profile) = profile else { return (0..actions.len()).collect() };
    let cost: Vec<u64> = actions.iter().map(|a| cost_ns(a, profile)).collect();
    let mut users = vec![Vec::new(); actions.len()];
    for (i, action) in actions.iter().enumerate() {
        for &dep in &action.deps {
            users[dep].push(i);
        }
    }
    // The longest path from an action to the end, itself included.
    let mut rank = vec![0u64; actions.len()];
    for i in (0..actions.len()).rev() {
        rank[i] = cost[i] + users[i].iter().map(|&u| rank[u]).max().unwrap_or(0);
    }
    let mut open: Vec<usize> = actions.iter().map(|a| a.deps.len()).collect();
    let mut ready_at = vec![0u64; actions.len()];
    let mut ready: Vec<usize> = (0..actions.len()).filter(|&i| open[i] == 0).collect();
    let mut lane_free = [0u64; 4];
    let mut order = Vec::with_capacity(actions.len());
    while !ready.is_empty() {
        // The action that can start first; of those, the one with the longest path behind it; of
        // those, the first of the graph.
        let (at, &next) = ready
            .iter()
            .enumerate()
            .min_by_key(|&(_, &i)| {
                let start = ready_at[i].max(lane_free[actions[i].lane.index()]);
                (start, std::cmp::Reverse(rank[i]), i)
            })
            .expect("the list is not empty");
        ready.swap_remove(at);
        let lane = actions[next].lane.index();
        let end = ready_at[next].max(lane_free[lane]) + cost[next];
        lane_free[lane] = end;
        order.push(next);
        for &user in &users[next] {
            ready_at[user] = ready_at[user].max(end);
            open[user] -= 1;
            if open[user] == 0 {
                ready.push(user);
            }
        }
    }
    order
}

fn cost_ns(action: &Action, profile: &Profile) -> u64 {
    match (&action.work, action.lane) {
        (Work::Task(task), Lane::Gpu) => profile.part_ns(task.node, Device::Gpu, task.fraction()),
        (Work::Task(task), _) => profile.part_ns(task.node, Device::Cpu, task.fraction()),
        (Work::Copy(copy), Lane::HostToDevice) => profile.upload.copy_ns(copy.range.len()),
        (Work::Copy(copy), _) => profile.download.copy_ns(copy.range.len()),
    }
}
