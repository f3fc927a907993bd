//! What a sample of the monitor costs, with its share of one core at ten samples per second; and
//! what finding the sensors costs, once. Threads beside it stand for an engine's.

use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

use sparoa_core::monitor::Monitor;

/// Fastest and median microseconds of a call.
fn measure(mut f: impl FnMut()) -> (f64, f64) {
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        let start = Instant::now();
        f();
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    (times[0], times[times.len() / 2])
}

fn main() {
    for threads in [0, 30] {
        let others: Vec<_> = (0..threads).map(|_| thread::spawn(thread::park)).collect();
        let mut monitor = Monitor::new();
        let (fastest, median) = measure(|| {
            black_box(monitor.sample());
        });
        println!(
            "sample, {threads:>2} more threads  {fastest:>8.1} us fastest {median:>8.1} us median, {:.3} % \
             of a core at ten per second",
            median * 10.0 / 1e6 * 100.0
        );
        for thread in others {
            thread.thread().unpark();
            thread.join().expect("a thread that only waits");
        }
    }
    let (fastest, median) = measure(|| {
        black_box(Monitor::new());
    });
    println!("finding the sensors      {fastest:>8.1} us fastest {median:>8.1} us median");
    println!("{}", Monitor::new().sample());
}
