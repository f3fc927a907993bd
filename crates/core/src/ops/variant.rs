//! Which kernel computes a layer with pruned weights, the dense or the sparse one: the faster,
//! measured when the layer is prepared.
//!
//! What was measured is remembered for the process; sessions keep it on disk with their other
//! measurements. One thread measures: both kernels divide their work alike.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use sparoa_kernels::Arithmetic;

use crate::tensor::count_zeros;

/// The name of the sparse kernels' method.
pub const SPARSE: &str = "sparse";

/// The name of the dense method that skips zeros of its input where it finds many.
pub const SKIPPING: &str = "skipping";
/// Share of zeros from which a sparse kernel may win; below it nothing is measured.
pub const FLOOR: f64 = 0.5;
/// Sparsities that differ by less than 1 / this share a measurement.
const STEPS: usize = 40;
/// Multiply-adds below which a layer is not worth a measurement: it stays dense.
const MIN_MACS: usize = 1 << 16;
/// Images, and rows of a matrix, to measure with at most: more of them are more of the same. A plan that
/// divides a batch asks for many numbers of them.
const MOST_IMAGES: usize = 8;
const MOST_ROWS: usize = 256;
/// Begins every question: where kernels have become faster than others, the number grows and all is
/// asked anew.
const KERNELS: &str = "kernels 4";
/// How long each candidate is measured, and how often at most.
const BUDGET: Duration = Duration::from_millis(4);
const MAX_ROUNDS: usize = 25;

/// Which kernel computes a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// The faster one, measured.
    #[default]
    Fastest,
    /// The one that computes with all weights.
    Dense,
    /// The one that skips zero weights.
    Sparse,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Variant::Fastest => "fastest",
            Variant::Dense => "dense",
            Variant::Sparse => "sparse",
        })
    }
}

impl Variant {
    /// What is left to decide where products are computed so: the reference is always dense, and
    /// bf16 unless the sparse kernel is asked for.
    pub(super) fn under(self, arithmetic: Arithmetic) -> Variant {
        match (self, arithmetic) {
            (_, Arithmetic::Reference) | (Variant::Fastest, Arithmetic::Bf16) => Variant::Dense,
            (variant, _) => variant,
        }
    }
}

/// Choices by question: the index of the fastest candidate.
pub type Choices = BTreeMap<String, usize>;

static KNOWN: Mutex<Choices> = Mutex::new(Choices::new());

fn known() -> MutexGuard<'static, Choices> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every choice made or learnt so far.
pub fn choices() -> Choices {
    known().clone()
}

/// Adds choices that were made on this machine before.
pub fn learn(choices: &Choices) {
    known().extend(choices.iter().map(|(question, &choice)| (question.clone(), choice)));
}

/// The sparsity of weights in steps, from [`FLOOR`] on.
pub fn sparsity(weights: &[f32]) -> Option<usize> {
    let share = count_zeros(weights) as f64 / weights.len().max(1) as f64;
    (share >= FLOOR).then(|| (share * STEPS as f64).round() as usize)
}

/// Whether a layer of so many multiply-adds is worth asking about.
pub(super) fn matters(macs: Option<usize>) -> bool {
    macs.is_some_and(|macs| macs >= MIN_MACS)
}

/// As many images as a layer of `count` is measured with.
pub(super) fn images(count: usize) -> usize {
    count.min(MOST_IMAGES)
}

/// As many rows as a product of `count` is measured with.
pub(super) fn rows(count: usize) -> usize {
    count.min(MOST_ROWS)
}

fn full(question: &str) -> String {
    format!("{KERNELS}: {question}")
}

/// The faster of a dense and a sparse kernel for `count` images or rows, if there is a sparse one;
/// both are measured, with `time`, as they are made for `few` of them. Where it is known which, the other
/// is not made.
pub(super) fn faster<T>(
    question: String,
    [count, few]: [usize; 2],
    dense: impl Fn(usize) -> T,
    sparse: impl Fn(usize) -> Option<T>,
    mut time: impl FnMut(&T),
) -> T {
    let make = |choice: usize| match choice {
        0 => dense(count),
        _ => sparse(count).unwrap_or_else(|| dense(count)),
    };
    let choice = known().get(&full(&question)).copied();
    if let Some(choice @ 0..=1) = choice {
        return make(choice);
    }
    let Some(pruned) = sparse(few) else { return dense(count) };
    let whole = dense(few);
    let choice = fastest(question, 2, &mut |i| time(if i == 0 { &whole } else { &pruned }));
    if count != few {
        return make(choice);
    }
    if choice == 0 { whole } else { pruned }
}

/// The fastest of `count` ways to do the same, by `question`'s text if that has been measured
/// before; `run(i)` does it one way. The first wins ties.
pub(super) fn fastest(question: String, count: usize, run: &mut dyn FnMut(usize)) -> usize {
    // Held while measuring: two measurements at once would disturb each other.
    let mut known = known();
    let question = full(&question);
    if let Some(&choice) = known.get(&question)
        && choice < count
    {
        return choice;
    }
    (0..count).for_each(&mut *run);
    let mut best = vec![Duration::MAX; count];
    let start = Instant::now();
    for round in 0..MAX_ROUNDS {
        for (i, best) in best.iter_mut().enumerate() {
            let before = Instant::now();
            run(i);
            *best = before.elapsed().min(*best);
        }
        if round > 1 && start.elapsed() > BUDGET * best.len() as u32 {
            break;
        }
    }
    let (choice, _) = best.iter().enumerate().min_by_key(|&(_, time)| time).unwrap_or((0, &BUDGET));
    tracing::debug!(question, choice, ?best, "kernel variant");
    known.insert(question, choice);
    choice
}

/// Inputs to measure with: no zeros, nothing that grows.
pub(super) fn inputs(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 1000) as f32 / 1000.0 + 0.01).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparsity_counts_in_steps_from_the_floor() {
        let weights = |zeros: usize| {
            let mut w = vec![1.0; 1000];
            w[..zeros].fill(0.0);
            w
        };
        assert_eq!(sparsity(&weights(499)), None);
        assert_eq!(sparsity(&weights(500)), Some(20));
        assert_eq!(sparsity(&weights(901)), Some(36));
        assert_eq!(sparsity(&[]), None);
    }

    #[test]
    fn what_was_measured_is_not_measured_again() {
        let mut runs = 0;
        let mut run = |way: usize| {
            runs += 1;
            std::thread::sleep(Duration::from_millis(if way == 0 { 2 } else { 0 }));
        };
        let question = "a test's question".to_owned();
        assert_eq!(fastest(question.clone(), 2, &mut run), 1);
        assert_eq!(fastest(question.clone(), 2, &mut |_| unreachable!("it is known")), 1);
        assert!(runs > 4);
        assert_eq!(choices().get(&full(&question)), Some(&1));
        // A file that was edited cannot choose what is not there.
        learn(&Choices::from([(full("edited"), 7)]));
        assert_eq!(fastest("edited".to_owned(), 1, &mut |_| ()), 0);
    }
}
