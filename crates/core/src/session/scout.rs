//! How to divide what divides into equal parts, a batch above all: the share that balances the
//! predictions is measured, then its neighbours, and so on from the fastest. What a few images cost
//! the CPU's many threads is what predictions err about most.

use std::time::{Duration, Instant};

use super::{SessionError, nanoseconds, work::Work};
use crate::{
    engine::Engine,
    schedule::{Candidate, Problem, common_parts, common_share, split_of},
    tensor::Tensor,
};

/// Shares that are measured at most.
const MOST: usize = 10;
/// Of these stay, the fastest ones, to be measured again among the finalists: prepared plans take
/// memory.
const KEPT: usize = 2;
/// Runs of each, after one that warms up; the fastest counts.
const RUNS: usize = 3;
/// With the preparation of plans, which may measure kernels of their own at first, everything takes so
/// many times what runs may.
const PREPARED: u32 = 4;

/// A split that was measured.
pub(super) struct Scouted {
    pub candidate: Candidate,
    pub engine: Engine,
    ns: u64,
}

impl Work<'_> {
    /// The fastest splits of those measured: none where nothing divides, or where one processor
    /// should have all but half a part. Runs end after `max_time`.
    ///
    /// # Errors
    /// When a plan cannot be judged or fails while it runs; one that cannot be prepared is passed
    /// over.
    pub fn scout(
        &self,
        problem: &Problem<'_>,
        inputs: &[&Tensor],
        outputs: &mut [Tensor],
        max_time: Duration,
    ) -> Result<Vec<Scouted>, SessionError> {
        let parts = common_parts(problem);
        let balance = f64::from(common_share(problem)) * parts as f64;
        if parts < 2 || balance < 0.5 || balance > parts as f64 - 0.5 {
            return Ok(Vec::new());
        }
        let start = Instant::now();
        let (mut tried, mut found) = (0, Vec::<Scouted>::new());
        let mut running = Duration::ZERO;
        climb(parts, balance.round() as usize, |part| -> Result<Option<u64>, SessionError> {
            let over = running >= max_time || start.elapsed() >= max_time.saturating_mul(PREPARED);
            if tried == MOST || tried > 0 && over {
                return Ok(None);
            }
            tried += 1;
            let candidate = split_of(problem, part, parts)?;
            let mut engine = match self.engine(&candidate.placement, Some(problem.profile)) {
                Ok(engine) => engine,
                Err(e) => {
                    tracing::info!("candidate '{}' is out: {e}", candidate.name);
                    return Ok(Some(u64::MAX));
                }
            };
            let begin = Instant::now();
            engine.run(inputs, outputs)?;
            let mut fastest = Duration::MAX;
            for _ in 0..RUNS {
                let start = Instant::now();
                engine.run(inputs, outputs)?;
                fastest = fastest.min(start.elapsed());
            }
            running += begin.elapsed();
            let ns = nanoseconds(fastest);
            tracing::debug!("{part} of {parts} parts for the GPU: {ns} ns");
            found.push(Scouted { candidate, engine, ns });
            found.sort_by_key(|scouted| scouted.ns);
            found.truncate(KEPT);
            Ok(Some(ns))
        })?;
        Ok(found)
    }
}

/// Looks for the part in `1..parts` with the least `time`, which falls before it and rises behind
/// it, from `start` on; ends early where `time` answers nothing.
fn climb<E>(
    parts: usize,
    start: usize,
    mut time: impl FnMut(usize) -> Result<Option<u64>, E>,
) -> Result<(), E> {
    let mut best = start.clamp(1, parts - 1);
    let mut known = vec![None; parts];
    let mut step = (parts / 16).max(1);
    loop {
        let around = [best, best + step, best.saturating_sub(step)];
        for part in around.into_iter().filter(|part| (1..parts).contains(part)) {
            if known[part].is_none() {
                let Some(ns) = time(part)? else { return Ok(()) };
                known[part] = Some(ns);
            }
        }
        let tried = (1..parts).filter_map(|part| known[part].map(|ns| (ns, part)));
        let next = tried.min().map_or(best, |(_, part)| part);
        match (next == best, step) {
            (true, 1) => return Ok(()),
            (true, _) => step /= 2,
            (false, _) => best = next,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// The parts tried, in order.
    fn tried(parts: usize, start: usize, least: usize, most: usize) -> Vec<usize> {
        let mut tried = Vec::new();
        climb(parts, start, |part| {
            if tried.len() == most {
                return Ok::<_, Infallible>(None);
            }
            tried.push(part);
            Ok(Some(least.abs_diff(part) as u64))
        })
        .unwrap();
        tried
    }

    #[test]
    fn the_fastest_share_is_found_from_anywhere() {
        for parts in [2, 3, 8, 32, 100] {
            for start in [0, 1, parts / 2, parts - 1, parts] {
                for least in 1..parts {
                    let tried = tried(parts, start, least, usize::MAX);
                    assert!(tried.contains(&least), "{least} of {parts} from {start}: {tried:?}");
                    let mut once = tried.clone();
                    once.sort_unstable();
                    once.dedup();
                    assert_eq!(once.len(), tried.len(), "each is measured once");
                }
            }
        }
    }

    #[test]
    fn few_shares_are_tried_and_none_after_the_time_is_over() {
        assert_eq!(tried(32, 25, 28, usize::MAX), [25, 27, 23, 29, 28, 26]);
        assert_eq!(tried(32, 25, 28, 2), [25, 27]);
        assert_eq!(tried(8, 7, 7, usize::MAX), [7, 6]);
    }
}
