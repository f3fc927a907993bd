//! A counter that threads wait on: a short spin where asked for, then sleep. The lock is taken
//! only to sleep and to wake a sleeper.

use std::{
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

#[derive(Default)]
pub(super) struct Counter {
    value: AtomicU64,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Counter {
    pub fn get(&self) -> u64 {
        self.value.load(Ordering::Acquire)
    }

    /// Sets the value; what this thread did before is visible to whoever sees it.
    pub fn set(&self, value: u64) {
        // Sequentially consistent with the sleeper's registration and its re-check: either it
        // sees the value, or it is seen here.
        self.value.store(value, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            self.wake_all();
        }
    }

    /// Makes sleepers look at their conditions again.
    pub fn wake_all(&self) {
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_all();
    }

    /// Waits until the value is at least `target` or `stop` holds (whoever makes `stop` true
    /// calls [`Counter::wake_all`]); spins for `spin` before it sleeps.
    pub fn wait(&self, target: u64, spin: Duration, stop: impl Fn() -> bool) {
        let ready = || self.value.load(Ordering::SeqCst) >= target || stop();
        if ready() {
            return;
        }
        if !spin.is_zero() {
            let start = Instant::now();
            while start.elapsed() < spin {
                for _ in 0..32 {
                    if self.get() >= target {
                        return;
                    }
                    std::hint::spin_loop();
                }
            }
        }
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !ready() {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How long it takes, on this machine, from one thread's signal until another that sleeps has
/// woken up: the median of some round trips, halved.
pub fn handoff_ns() -> u64 {
    const TRIPS: u64 = 41;
    let (ping, pong) = (Counter::default(), Counter::default());
    let mut times: Vec<u64> = std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 1..=TRIPS {
                ping.wait(i, Duration::ZERO, || false);
                pong.set(i);
            }
        });
        (1..=TRIPS)
            .map(|i| {
                let start = Instant::now();
                ping.set(i);
                pong.wait(i, Duration::ZERO, || false);
                u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
            })
            .collect()
    });
    times.sort_unstable();
    times[times.len() / 2] / 2
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, atomic::AtomicBool};

    use super::*;

    #[test]
    fn every_set_is_seen_by_a_sleeper() {
        let (ping, pong) = (Arc::new(Counter::default()), Arc::new(Counter::default()));
        let (a, b) = (ping.clone(), pong.clone());
        let other = std::thread::spawn(move || {
            for i in 1..=2000 {
                a.wait(i, Duration::ZERO, || false);
                b.set(i);
            }
        });
        for i in 1..=2000 {
            ping.set(i);
            pong.wait(i, Duration::from_micros(2), || false);
        }
        other.join().unwrap();
        assert_eq!(pong.get(), 2000);
    }

    #[test]
    fn stop_ends_a_wait() {
        let counter = Arc::new(Counter::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (c, s) = (counter.clone(), stop.clone());
        let waiter = std::thread::spawn(move || {
            c.wait(1, Duration::ZERO, || s.load(Ordering::SeqCst));
        });
        stop.store(true, Ordering::SeqCst);
        counter.wake_all();
        waiter.join().unwrap();
    }
}
