//! What others take of the CPU: their time, our waiting for a core, the kernel's pressure figure.

use std::{
    collections::HashMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use super::watched::{Watched, entries, text};

/// Fewer clock ticks than this, over all cores, are no measurement.
const FEWEST_TICKS: u64 = 5;

/// Share of the cores' time that other processes took.
#[derive(Debug)]
pub(super) struct OthersTime {
    stat: Option<Watched>,
    own: Option<Watched>,
    cores: Vec<usize>,
    last: Option<Ticks>,
    share: Option<f64>,
}

/// Clock ticks since the machine (or the process) started.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ticks {
    busy: u64,
    total: u64,
    own: u64,
}

impl OthersTime {
    pub fn find(root: &Path, cores: &[usize]) -> OthersTime {
        // A line of a core is shorter than this; lines that follow are not needed.
        let bytes = 256 * (cores.last().map_or(0, |c| *c as u64) + 2);
        let mut found = OthersTime {
            stat: Watched::open_limited(&root.join("proc/stat"), bytes),
            own: Watched::open(&root.join("proc/self/stat")),
            cores: cores.to_owned(),
            last: None,
            share: None,
        };
        found.last = found.ticks();
        found
    }

    fn ticks(&mut self) -> Option<Ticks> {
        let own = own_ticks(self.own.as_mut()?.text()?)?;
        let (busy, total) = core_ticks(self.stat.as_mut()?.text()?, &self.cores)?;
        Some(Ticks { busy, total, own })
    }

    pub fn sample(&mut self) -> Option<f64> {
        let now = self.ticks();
        let (Some(last), Some(ticks)) = (self.last, now) else {
            self.last = now;
            self.share = None;
            return None;
        };
        let elapsed = |f: fn(&Ticks) -> u64| f(&ticks).checked_sub(f(&last));
        let (busy, total, own) = (elapsed(|t| t.busy), elapsed(|t| t.total), elapsed(|t| t.own));
        let (Some(busy), Some(total), Some(own)) = (busy, total, own) else {
            // A core left or came back: its counters are missing from one of the sums.
            self.last = now;
            self.share = None;
            return None;
        };
        if total >= FEWEST_TICKS {
            self.last = now;
            self.share = Some((busy.saturating_sub(own) as f64 / total as f64).min(1.0));
        }
        self.share
    }
}

/// Busy and all ticks of these cores, summed, from the text of `/proc/stat`.
fn core_ticks(stat: &str, cores: &[usize]) -> Option<(u64, u64)> {
    let mut sums = None;
    for line in stat.lines() {
        let mut fields = line.split_ascii_whitespace();
        let Some(core) = fields.next().and_then(|f| f.strip_prefix("cpu")?.parse().ok()) else {
            continue;
        };
        if cores.binary_search(&core).is_err() {
            continue;
        }
        // user nice system idle iowait irq softirq steal; guests are part of user and nice.
        let mut ticks = [0u64; 8];
        for (slot, field) in ticks.iter_mut().zip(fields) {
            *slot = field.parse().ok()?;
        }
        let total: u64 = ticks.iter().sum();
        let (busy, all) = sums.unwrap_or((0, 0));
        sums = Some((busy + total - ticks[3] - ticks[4], all + total));
    }
    sums
}

/// `utime` and `stime` of `/proc/self/stat`: fields 14 and 15, counted after the name, which may
/// hold anything.
fn own_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

/// Threads that wanted to run for less than this, together, tell nothing.
const LEAST_WANTED_NS: u64 = 2_000_000;

/// Of the time that this process's threads wanted to run, the share they waited for a core.
#[derive(Debug)]
pub(super) struct RunQueue {
    tasks: PathBuf,
    /// Nanoseconds run and waited, by thread.
    last: HashMap<OsString, (u64, u64)>,
}

impl RunQueue {
    pub fn find(root: &Path) -> RunQueue {
        let mut queue = RunQueue { tasks: root.join("proc/self/task"), last: HashMap::default() };
        queue.sample();
        queue
    }

    pub fn sample(&mut self) -> Option<f64> {
        let (mut ran, mut waited) = (0, 0);
        let mut now = HashMap::with_capacity(self.last.len());
        for task in entries(&self.tasks) {
            let Some(times) = text(&task.join("schedstat")).as_deref().and_then(run_and_wait)
            else {
                continue;
            };
            let Some(id) = task.file_name() else { continue };
            // A thread that is new started at zero; so did one that got the number of another.
            let last = self.last.get(id).copied().unwrap_or((0, 0));
            let last = if times.0 < last.0 || times.1 < last.1 { (0, 0) } else { last };
            ran += times.0 - last.0;
            waited += times.1 - last.1;
            now.insert(id.to_owned(), times);
        }
        self.last = now;
        let wanted = ran + waited;
        (wanted >= LEAST_WANTED_NS).then(|| waited as f64 / wanted as f64)
    }
}

fn run_and_wait(schedstat: &str) -> Option<(u64, u64)> {
    let mut fields = schedstat.split_ascii_whitespace();
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// The kernel's pressure figure of a resource: the share of the last ten seconds in which some
/// process lacked it.
#[derive(Debug)]
pub(super) struct Pressure(Option<Watched>);

impl Pressure {
    pub fn find(root: &Path, resource: &str) -> Pressure {
        Pressure(Watched::open(&root.join("proc/pressure").join(resource)))
    }

    pub fn sample(&mut self) -> Option<f64> {
        let text = self.0.as_mut()?.text()?;
        let some = text.lines().find_map(|l| l.strip_prefix("some "))?;
        let average = some.split(' ').find_map(|f| f.strip_prefix("avg10="))?;
        average.parse::<f64>().ok().filter(|p| (0.0..=100.0).contains(p)).map(|p| p / 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::testing::Tree;

    fn stat(cores: &[(usize, u64, u64)]) -> String {
        let mut text = "cpu  1 2 3 4\n".to_owned();
        for (core, user, idle) in cores {
            text.push_str(&format!("cpu{core} {user} 0 10 {idle} 5 0 0 2 0 0\n"));
        }
        text + "intr 5 0 0\n"
    }

    fn own(user: u64) -> String {
        format!("7 (a (name) R) S 1 7 7 0 -1 0 0 0 0 0 {user} 1 0 0 20 0\n")
    }

    #[test]
    fn others_are_the_busy_time_that_is_not_ours_on_our_cores() {
        let tree = Tree::new();
        tree.write("proc/stat", &stat(&[(0, 100, 100), (1, 100, 100), (2, 0, 0)]));
        tree.write("proc/self/stat", &own(50));
        let mut time = OthersTime::find(tree.root(), &[1, 2]);
        assert_eq!(time.sample(), None, "nothing has passed");
        // 40 busy of 100 ticks on our cores, 10 of them ours; core 0 is not ours.
        tree.write("proc/stat", &stat(&[(0, 900, 100), (1, 130, 120), (2, 10, 40)]));
        tree.write("proc/self/stat", &own(60));
        assert_eq!(time.sample(), Some(0.3));
        // Too few ticks: the last figure stands, and they count next time.
        tree.write("proc/stat", &stat(&[(1, 132, 120), (2, 12, 40)]));
        assert_eq!(time.sample(), Some(0.3));
        tree.write("proc/stat", &stat(&[(1, 135, 120), (2, 15, 40)]));
        assert_eq!(time.sample(), Some(1.0));
        // More of ours than is busy: the counters round differently.
        tree.write("proc/stat", &stat(&[(1, 135, 130), (2, 15, 50)]));
        tree.write("proc/self/stat", &own(61));
        assert_eq!(time.sample(), Some(0.0));
    }

    #[test]
    fn counters_that_go_backwards_or_vanish_start_anew() {
        let tree = Tree::new();
        tree.write("proc/stat", &stat(&[(0, 100, 100), (1, 100, 100)]));
        tree.write("proc/self/stat", &own(0));
        let mut time = OthersTime::find(tree.root(), &[0, 1]);
        // Core 1 goes offline.
        tree.write("proc/stat", &stat(&[(0, 110, 190)]));
        assert_eq!(time.sample(), None);
        tree.write("proc/stat", &stat(&[(0, 160, 240)]));
        assert_eq!(time.sample(), Some(0.5));
        for broken in ["", "cpu0 a b c", "garbage"] {
            tree.write("proc/stat", broken);
            assert_eq!(time.sample(), None);
        }
        tree.write("proc/stat", &stat(&[(0, 200, 300)]));
        assert_eq!(time.sample(), None, "there was no last sample");
        tree.write("proc/stat", &stat(&[(0, 300, 300)]));
        assert_eq!(time.sample(), Some(1.0));
        tree.write("proc/self/stat", "7 (x) S 1");
        assert_eq!(time.sample(), None);

        let empty = Tree::new();
        assert_eq!(OthersTime::find(empty.root(), &[0]).sample(), None);
        empty.dir("proc/stat");
        empty.write("proc/self/stat", &own(1));
        assert_eq!(OthersTime::find(empty.root(), &[0]).sample(), None);
    }

    #[test]
    fn waiting_is_counted_over_threads_that_come_and_go() {
        let tree = Tree::new();
        let thread = |id: u32, ran_ms: u64, waited_ms: u64| {
            let text = format!("{} {} 9\n", ran_ms * 1_000_000, waited_ms * 1_000_000);
            tree.write(&format!("proc/self/task/{id}/schedstat"), &text);
        };
        thread(1, 500, 100);
        thread(2, 10, 0);
        let mut queue = RunQueue::find(tree.root());
        assert_eq!(queue.sample(), None, "nobody ran");
        thread(1, 506, 102);
        std::fs::remove_dir_all(tree.root().join("proc/self/task/2")).unwrap();
        assert_eq!(queue.sample(), Some(0.25));
        // A new thread, and one whose counters went backwards because its number was reused.
        thread(2, 3, 0);
        thread(1, 1, 4);
        assert_eq!(queue.sample(), Some(0.5));
        tree.write("proc/self/task/1/schedstat", "x y z");
        thread(2, 13, 0);
        assert_eq!(queue.sample(), Some(0.0));
        assert_eq!(RunQueue::find(Tree::new().root()).sample(), None);
    }

    #[test]
    fn pressure_is_a_share() {
        let tree = Tree::new();
        let path = "proc/pressure/cpu";
        assert_eq!(Pressure::find(tree.root(), "cpu").sample(), None);
        tree.write(path, "some avg10=6.50 avg60=4.36 avg300=3.52 total=1\nfull avg10=9.00\n");
        let mut pressure = Pressure::find(tree.root(), "cpu");
        assert_eq!(pressure.sample(), Some(0.065));
        for broken in ["", "some avg10=x", "some avg10=900", "full avg10=1.0"] {
            tree.write(path, broken);
            assert_eq!(pressure.sample(), None, "{broken}");
        }
    }
}
