//! When to run a batch, and which one: the rule.
//!
//! Whatever waits while the worker computes forms the next batch, so batches grow with the load by
//! themselves. When the worker is free it decides:
//!
//! - **Which.** Of the prepared sizes the one that computes most rows per second of those waiting,
//!   padding counted as nothing: five rows run as four and one where that is faster than eight with
//!   three empty. Only sizes of which two fit into the SLO count, because a request that just missed
//!   a batch waits for it and then for its own; and only those that finish before the first of the
//!   waiting requests is late, as long as there is one. That is the batch with the best throughput
//!   whose latency fits when the queue is long, and the fastest answer when it is short.
//! - **When.** At once, unless it pays to wait for one more row: the rows waiting lose the time until
//!   it comes and what it adds to their batch; it gains that it need not wait for the batch to end.
//!   With `n` rows waiting and `W(n)` the time to compute them that is
//!   `n (gap + W(n+1) - W(n)) < W(n) + W(1) - W(n+1) - gap`,
//!   where `gap` is the expected time to the next row. On a processor whose latency grows with the
//!   batch the answer is "at once"; where eight rows take as long as one it is worth waiting. Never
//!   longer than leaves time to compute within the SLO of the oldest, never beyond `max_wait`.
//!
//! This rule is ours. Clipper searches its batch by additive increase and multiplicative decrease
//! against the SLO; here the latency of each size is known beforehand and kept up to date by
//! measuring. Triton takes preferred sizes and a fixed delay from the user: that is
//! [`Target::Fixed`]. That twice the latency of a batch must fit into the SLO is Nexus's rule.

use super::Target;

/// Of sizes whose throughput is within this share of the best the smallest runs.
const NEARLY: f64 = 0.02;

/// One prepared batch size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Size {
    pub batch: usize,
    /// What it takes, and how far measurements stray from that, in nanoseconds.
    pub mean_ns: f64,
    pub deviation_ns: f64,
    /// Measurements behind it, up to [`MEMORY`]; the one before the queue began counts as one.
    seen: u32,
}

/// A latency is an average over about so many of the last batches.
const MEMORY: u32 = 16;

/// From so many measurements on, a latency is believed whatever those of other sizes say.
const TRUSTED: u32 = 4;

impl Size {
    pub fn new(batch: usize, latency_ns: u64) -> Size {
        Size { batch, mean_ns: latency_ns as f64, deviation_ns: latency_ns as f64 / 20.0, seen: 1 }
    }

    /// What it hardly ever exceeds.
    pub fn high_ns(&self) -> f64 {
        self.mean_ns + 2.0 * self.deviation_ns
    }

    /// Follows a measurement.
    pub fn observe(&mut self, latency_ns: u64) {
        // The first ones count more: they correct what was measured before.
        self.seen = (self.seen + 1).min(MEMORY);
        let weight = 1.0 / f64::from(self.seen);
        let off = latency_ns as f64 - self.mean_ns;
        self.mean_ns += off * weight;
        self.deviation_ns += (off.abs() - self.deviation_ns) * weight;
    }
}

/// The sizes with latencies that fit together. A batch takes no longer than a larger one, which
/// could be run instead, nor than the batches of a smaller size that hold its rows. A latency that says
/// otherwise was measured while something else ran; until batches of that size have been served and
/// tell what it is, the bound is believed, or the size would never be chosen again.
pub(super) fn curve(sizes: &[Size]) -> Vec<Size> {
    let bound = |size: &Size| {
        let others = sizes.iter().map(|other| {
            let batches = size.batch.div_ceil(other.batch.max(1));
            batches as f64 * other.mean_ns
        });
        others.fold(size.mean_ns, f64::min)
    };
    let fitted = |size: &Size| match size.seen < TRUSTED {
        true => Size { mean_ns: bound(size), ..*size },
        false => *size,
    };
    sizes.iter().map(fitted).collect()
}

/// What the worker sees when it decides. Times are in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting<'a> {
    /// Rows of each waiting request, the oldest first; at least one.
    pub rows: &'a [usize],
    /// How long the oldest has waited.
    pub oldest_ns: f64,
    /// Until the first of them is late by its deadline or the SLO.
    pub slack_ns: Option<f64>,
    /// Expected until the next row comes.
    pub gap_ns: Option<f64>,
    /// No more will come.
    pub closing: bool,
}

/// The options that matter here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Aims {
    pub target: Target,
    pub slo_ns: Option<f64>,
    pub max_wait_ns: Option<f64>,
}

/// Why a batch was not made to wait for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// It is as large as a batch may be.
    Full,
    /// Waiting did not pay.
    Ready,
    /// It had waited as long as it may.
    Waited,
    /// A deadline or the SLO pressed.
    Pressed,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Decision {
    /// Run the size with this index.
    Run(usize, Cut),
    /// Look again when a request comes, at the latest after so many nanoseconds.
    Wait(f64),
}

/// Decides. `sizes` is sorted by batch and not empty; no request has more rows than the largest.
pub(super) fn decide(sizes: &[Size], waiting: &Waiting<'_>, aims: &Aims) -> Decision {
    let sizes = &curve(sizes)[..];
    let total: usize = waiting.rows.iter().sum();
    // What would run now, how many rows would be enough, how long it pays to wait for more.
    let (chosen, enough, worth) = match aims.target {
        Target::Fixed(target) => {
            let at_most = holding(sizes, target);
            let rows = fitting(waiting.rows, sizes[at_most].batch).1;
            let first = waiting.rows.first().copied().unwrap_or(1);
            (holding(sizes, rows.max(first)), target, f64::MAX)
        }
        Target::Auto => {
            let may = allowed(sizes, waiting, aims);
            let largest = may.last().map_or(1, |(_, s)| s.batch);
            (fastest(&may, waiting.rows), largest, worth(&may, total, waiting.gap_ns))
        }
    };
    if total >= enough {
        return Decision::Run(chosen, Cut::Full);
    }
    if waiting.closing || worth <= 0.0 {
        return Decision::Run(chosen, Cut::Ready);
    }
    let patience = aims.max_wait_ns.map_or(f64::MAX, |most| most - waiting.oldest_ns);
    if patience <= 0.0 {
        return Decision::Run(chosen, Cut::Waited);
    }
    // With one more the batch takes this long, and must not be late.
    let next = sizes[holding(sizes, total + 1)].high_ns();
    let time = waiting.slack_ns.map_or(f64::MAX, |slack| slack - next);
    if time <= 0.0 {
        return Decision::Run(chosen, Cut::Pressed);
    }
    Decision::Wait(worth.min(patience).min(time))
}

/// How long it pays to wait for the next row; 0 where it is not expected within that time.
fn worth(may: &[(usize, &Size)], total: usize, gap_ns: Option<f64>) -> f64 {
    let work = work(may, total + 1);
    let n = total as f64;
    let (now, more, one) = (work[total], work[total + 1], work[1]);
    let longest = (now + one - more - n * (more - now)) / (n + 1.0);
    match gap_ns {
        Some(gap) if gap < longest => longest,
        _ => 0.0,
    }
}

/// The index of the smallest size that holds so many rows; of the largest where none does.
fn holding(sizes: &[Size], rows: usize) -> usize {
    sizes.partition_point(|s| s.batch < rows).min(sizes.len() - 1)
}

/// The sizes to choose from: those that hold the first request, fit the SLO twice and finish in
/// time; without the last condition, or both, where nothing meets them.
fn allowed<'a>(sizes: &'a [Size], waiting: &Waiting<'_>, aims: &Aims) -> Vec<(usize, &'a Size)> {
    let first = waiting.rows.first().copied().unwrap_or(1);
    let holds: Vec<_> = sizes.iter().enumerate().filter(|(_, s)| s.batch >= first).collect();
    let mut may = holds.clone();
    if let Some(slo) = aims.slo_ns {
        may.retain(|(_, s)| 2.0 * s.high_ns() <= slo);
    }
    if may.is_empty() {
        return holds[..holds.len().min(1)].to_vec();
    }
    if let Some(slack) = waiting.slack_ns {
        let in_time: Vec<_> = may.iter().copied().filter(|(_, s)| s.high_ns() <= slack).collect();
        if !in_time.is_empty() {
            return in_time;
        }
    }
    may
}

/// The index of the size that computes most rows per second.
fn fastest(may: &[(usize, &Size)], rows: &[usize]) -> usize {
    let rate = |s: &Size| fitting(rows, s.batch).1 as f64 / s.mean_ns.max(1.0);
    let best = may.iter().map(|(_, s)| rate(s)).fold(0.0, f64::max);
    may.iter().find(|(_, s)| rate(s) >= best * (1.0 - NEARLY)).map_or(0, |(i, _)| *i)
}

/// How many of the first requests fit into a batch, and their rows.
pub(super) fn fitting(rows: &[usize], batch: usize) -> (usize, usize) {
    let mut sum = 0;
    for (i, &rows) in rows.iter().enumerate() {
        if sum + rows > batch {
            return (i, sum);
        }
        sum += rows;
    }
    (rows.len(), sum)
}

/// The time to compute 0, 1, .. `most` single rows with these sizes.
fn work(may: &[(usize, &Size)], most: usize) -> Vec<f64> {
    let mut work = vec![0.0];
    for n in 1..=most {
        let best = may.iter().map(|(_, s)| s.mean_ns + work[n - n.min(s.batch)]);
        work.push(best.fold(f64::MAX, f64::min));
    }
    work
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUTO: Aims = Aims { target: Target::Auto, slo_ns: None, max_wait_ns: None };

    /// Sizes 1, 2, 4, 8 of this latency, exactly.
    fn sizes(latency: impl Fn(usize) -> u64) -> Vec<Size> {
        let exact = |b| Size { deviation_ns: 0.0, ..Size::new(b, latency(b)) };
        [1, 2, 4, 8].into_iter().map(exact).collect()
    }

    fn waiting(rows: &[usize]) -> Waiting<'_> {
        Waiting { rows, oldest_ns: 0.0, slack_ns: None, gap_ns: None, closing: false }
    }

    fn linear() -> Vec<Size> {
        sizes(|b| 100 * b as u64)
    }

    /// A processor that computes eight rows in the time of one.
    fn wide() -> Vec<Size> {
        sizes(|_| 1000)
    }

    #[test]
    fn rows_that_do_not_fill_a_size_run_without_padding_where_that_is_faster() {
        assert_eq!(decide(&linear(), &waiting(&[1; 5]), &AUTO), Decision::Run(0, Cut::Ready));
        let some_overhead = sizes(|b| 60 + 40 * b as u64);
        assert_eq!(decide(&some_overhead, &waiting(&[1; 5]), &AUTO), Decision::Run(2, Cut::Ready));
        // Seven of eight rows are nearly a full batch.
        assert_eq!(decide(&wide(), &waiting(&[1; 7]), &AUTO), Decision::Run(3, Cut::Ready));
        assert_eq!(decide(&wide(), &waiting(&[1; 9]), &AUTO), Decision::Run(3, Cut::Full));
    }

    #[test]
    fn a_size_that_was_measured_wrongly_is_found_out() {
        let mut sizes: Vec<Size> = [(1, 7), (2, 14), (4, 68), (8, 55)]
            .map(|(batch, ms)| Size::new(batch, ms * 1_000_000))
            .into();
        // No longer than two batches of two.
        let ms =
            |sizes: &[Size]| curve(sizes).iter().map(|s| s.mean_ns / 1e6).collect::<Vec<f64>>();
        assert_eq!(ms(&sizes), [7.0, 14.0, 28.0, 55.0]);
        // What is served tells what it takes; from then on that is believed, be it more or less.
        (0..3).for_each(|_| sizes[2].observe(24_000_000));
        assert!((ms(&sizes)[2] - 35.0).abs() < 1e-9, "{:?}", ms(&sizes));
        (0..20).for_each(|_| sizes[2].observe(24_000_000));
        assert!((ms(&sizes)[2] - 24.0).abs() < 4.0, "{:?}", ms(&sizes));
        // A smaller batch that was measured wrongly is bounded by the larger ones.
        let first = [Size::new(1, 90_000_000), Size::new(8, 55_000_000)];
        assert_eq!(ms(&first), [55.0, 55.0]);
    }

    #[test]
    fn waiting_must_pay() {
        let soon = Waiting { gap_ns: Some(10.0), ..waiting(&[1]) };
        assert_eq!(decide(&linear(), &soon, &AUTO), Decision::Run(0, Cut::Ready));
        // On the wide processor one row may wait half a batch for the second.
        assert_eq!(decide(&wide(), &soon, &AUTO), Decision::Wait(500.0));
        let seldom = Waiting { gap_ns: Some(600.0), ..soon };
        assert_eq!(decide(&wide(), &seldom, &AUTO), Decision::Run(0, Cut::Ready));
        // The more wait, the less a further one is worth.
        let many = Waiting { rows: &[1; 4], ..soon };
        assert_eq!(decide(&wide(), &many, &AUTO), Decision::Wait(200.0));
        let closing = Waiting { closing: true, ..soon };
        assert_eq!(decide(&wide(), &closing, &AUTO), Decision::Run(0, Cut::Ready));
    }

    #[test]
    fn waiting_ends_with_the_time_there_is() {
        let soon = Waiting { gap_ns: Some(10.0), ..waiting(&[1]) };
        let pressed = Waiting { slack_ns: Some(1200.0), ..soon };
        assert_eq!(decide(&wide(), &pressed, &AUTO), Decision::Wait(200.0));
        let pressed = Waiting { slack_ns: Some(1000.0), ..soon };
        assert_eq!(decide(&wide(), &pressed, &AUTO), Decision::Run(0, Cut::Pressed));
        let aims = Aims { max_wait_ns: Some(300.0), ..AUTO };
        let waited = Waiting { oldest_ns: 100.0, ..soon };
        assert_eq!(decide(&wide(), &waited, &aims), Decision::Wait(200.0));
        let waited = Waiting { oldest_ns: 300.0, ..soon };
        assert_eq!(decide(&wide(), &waited, &aims), Decision::Run(0, Cut::Waited));
    }

    #[test]
    fn sizes_keep_to_the_slo() {
        let overhead = sizes(|b| 600 + 100 * b as u64);
        let aims = Aims { slo_ns: Some(2000.0), ..AUTO };
        // 4 rows take 1000: twice that is the SLO. 8 take 1400.
        assert_eq!(decide(&overhead, &waiting(&[1; 20]), &aims), Decision::Run(2, Cut::Full));
        let late = Waiting { slack_ns: Some(850.0), ..waiting(&[1; 20]) };
        assert_eq!(decide(&overhead, &late, &aims), Decision::Run(1, Cut::Full));
        // Too late for all: back to the best throughput, to drain the queue.
        let lost = Waiting { slack_ns: Some(-5.0), ..waiting(&[1; 20]) };
        assert_eq!(decide(&overhead, &lost, &aims), Decision::Run(2, Cut::Full));
        let impossible = Aims { slo_ns: Some(100.0), ..AUTO };
        assert_eq!(decide(&overhead, &waiting(&[1; 20]), &impossible), Decision::Run(0, Cut::Full));
    }

    #[test]
    fn a_fixed_target_waits_for_it() {
        let aims = Aims { target: Target::Fixed(4), slo_ns: None, max_wait_ns: Some(500.0) };
        let some = Waiting { oldest_ns: 100.0, ..waiting(&[1; 3]) };
        assert_eq!(decide(&wide(), &some, &aims), Decision::Wait(400.0));
        assert_eq!(decide(&wide(), &waiting(&[1; 4]), &aims), Decision::Run(2, Cut::Full));
        let waited = Waiting { oldest_ns: 500.0, ..some };
        assert_eq!(decide(&wide(), &waited, &aims), Decision::Run(2, Cut::Waited));
        let pressed = Waiting { slack_ns: Some(1100.0), ..some };
        assert_eq!(decide(&wide(), &pressed, &aims), Decision::Wait(100.0));
    }

    #[test]
    fn requests_of_several_rows_stay_whole() {
        assert_eq!(fitting(&[3, 3, 1], 4), (1, 3));
        assert_eq!(fitting(&[3, 3, 1], 8), (3, 7));
        // The first request holds three rows: sizes 1 and 2 are out.
        assert_eq!(decide(&linear(), &waiting(&[3, 1]), &AUTO), Decision::Run(2, Cut::Ready));
    }
}
