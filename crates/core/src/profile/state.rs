//! The state of the hardware: what others use of it, its clocks, what is left of its memory's and
//! link's rate. A state turns a machine's nominal costs into those of the moment.

use rand::{RngExt as _, SeedableRng};
use rand_pcg::Pcg32;
use serde::{Deserialize, Serialize};

use super::{Cost, DeviceModel, DeviceProfile, MachineModel, PowerMode, Profile};

/// What a machine can give at a moment, against its nominal mode and no other load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HardwareState {
    /// Share of the CPU's time that others take, 0 to below 1.
    pub cpu_busy: f64,
    /// Share of the GPU's time that others take, 0 to below 1.
    pub gpu_busy: f64,
    /// The CPU's cores times their clock, over the nominal.
    pub cpu_rate: f64,
    /// The GPU's clock over the nominal.
    pub gpu_rate: f64,
    /// Memory bandwidth that is left, over the nominal. Of the host's memory, where the GPU has
    /// its own.
    pub memory: f64,
    /// The same of the link between the processors.
    pub link: f64,
    /// How much later than in the nominal state a lane that sleeps is woken, in nanoseconds: others'
    /// threads have the core.
    #[serde(default)]
    pub wake_ns: f64,
}

impl Default for HardwareState {
    fn default() -> HardwareState {
        HardwareState {
            cpu_busy: 0.0,
            gpu_busy: 0.0,
            cpu_rate: 1.0,
            gpu_rate: 1.0,
            memory: 1.0,
            link: 1.0,
            wake_ns: 0.0,
        }
    }
}

impl HardwareState {
    /// Share of the nominal CPU that is ours.
    pub fn cpu_share(&self) -> f64 {
        (self.cpu_rate * (1.0 - self.cpu_busy)).max(1e-3)
    }

    /// Share of the nominal GPU that is ours.
    pub fn gpu_share(&self) -> f64 {
        (self.gpu_rate * (1.0 - self.gpu_busy)).max(1e-3)
    }

    /// Costs that were measured in the nominal state, as they are in this one. The shares of the
    /// processors say it all: what memory takes is in the measured times.
    pub fn slow(&self, nominal: &Profile) -> Profile {
        let mut profile = nominal.clone();
        let (cpu, gpu) = (self.cpu_share(), self.gpu_share());
        let slower = |cost: &mut Option<Cost>, share: f64| {
            if let Some(cost) = cost {
                cost.latency_ns = (cost.latency_ns as f64 / share) as u64;
                cost.fixed_ns = (cost.fixed_ns as f64 / share) as u64;
            }
        };
        for node in &mut profile.nodes {
            slower(&mut node.cpu, cpu);
            slower(&mut node.gpu, gpu);
        }
        let host = |ns: u64| (ns as f64 / cpu) as u64;
        profile.submit_ns = host(profile.submit_ns);
        profile.handoff_ns = host(profile.handoff_ns) + self.wake_ns as u64;
        for link in [&mut profile.upload, &mut profile.download] {
            link.latency_ns = host(link.latency_ns);
            link.bytes_per_s *= self.link;
        }
        profile
    }

    /// Whether others take a good part of a processor, or keep lanes from waking.
    pub fn is_loaded(&self) -> bool {
        self.cpu_share().min(self.gpu_share()) < LOADED || self.wake_ns > WAKE_NS
    }

    /// The cell of the plan cache in which this state lies.
    pub fn bucket(&self) -> StateBucket {
        StateBucket(self.logarithms().map(|l| (l / BUCKET.ln()).round() as i8))
    }

    /// By how many buckets two states are apart, where they differ most.
    pub fn distance(&self, other: &HardwareState) -> f64 {
        let pairs = self.logarithms().into_iter().zip(other.logarithms());
        pairs.map(|(a, b)| (a - b).abs() / BUCKET.ln()).fold(0.0, f64::max)
    }

    fn logarithms(&self) -> [f64; 4] {
        let wake = WAKE_NS / (WAKE_NS + self.wake_ns);
        [self.cpu_share(), self.gpu_share(), self.link.max(1e-3), wake.sqrt()].map(f64::ln)
    }

    /// A machine as it is in this state.
    pub fn machine(&self, nominal: &MachineModel) -> MachineModel {
        let mut m = nominal.clone();
        let (cpu, gpu) = (self.cpu_share(), self.gpu_share());
        slow(&mut m.cpu, cpu, self.memory * (1.0 - self.cpu_busy));
        let memory = if m.shared_memory { self.memory } else { 1.0 };
        slow(&mut m.gpu, gpu, memory * (1.0 - self.gpu_busy));
        // The host's work around submissions and copies.
        let host = |ns: u64| (ns as f64 / cpu) as u64;
        m.submit_ns = host(m.submit_ns);
        m.handoff_ns = host(m.handoff_ns);
        for link in [&mut m.upload, &mut m.download] {
            link.latency_ns = host(link.latency_ns);
            link.bytes_per_s *= self.link;
        }
        if let Some(power) = &mut m.power {
            // Switching power goes with the clock and about the square of the voltage, which
            // falls with it; only our share of the time is ours.
            power.cpu_w *= self.cpu_rate * self.cpu_rate * (1.0 - self.cpu_busy);
            power.gpu_w *= self.gpu_rate * self.gpu_rate * (1.0 - self.gpu_busy);
        }
        m
    }
}

/// Two states whose shares of a processor or of the link differ by less than this factor are one to
/// the plan cache: the best plans of both differ by a few percent at most.
const BUCKET: f64 = 1.3;

/// Wake-ups that are late by less than this matter to no plan.
const WAKE_NS: f64 = 200_000.0;

/// A processor of which less is left is loaded.
const LOADED: f64 = 0.7;

/// States that the same plan serves: shares of CPU, GPU and link and lateness of wake-ups, in steps of
/// [`BUCKET`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StateBucket([i8; 4]);

fn slow(device: &mut DeviceModel, share: f64, memory: f64) {
    for rate in &mut device.flops_per_s {
        *rate *= share;
    }
    device.bytes_per_s *= memory.max(1e-3);
    device.cache_bytes_per_s *= share;
    device.cache_bytes_per_s = device.cache_bytes_per_s.max(device.bytes_per_s);
    for ns in &mut device.fill_ns {
        *ns /= share;
    }
    device.launch_ns /= share;
}

/// Shares of the memory's rate that a fully busy processor of others takes.
const MEMORY_PRESSURE: f64 = 0.25;

/// The distribution of states over which simulated results are quoted, as a sequence in time: busy
/// shares of CPU and GPU each uniform in [0, 0.8], the power mode uniform over the board's
/// published ones, the thermal clock factor uniform in [0.6, 1]; all independent, each redrawn
/// after 20 to 200 inferences. Memory and link lose bandwidth in proportion to the others' load.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// Per mode: CPU rate, GPU rate, memory ratio.
    modes: Vec<[f64; 3]>,
    shared_memory: bool,
    rng: Pcg32,
    cpu_busy: Drawn<f64>,
    gpu_busy: Drawn<f64>,
    mode: Drawn<usize>,
    thermal: Drawn<f64>,
}

/// A value and how many inferences it still holds.
#[derive(Clone, Copy, Debug, Default)]
struct Drawn<T> {
    value: T,
    left: u32,
}

impl Conditions {
    /// The sequence of a board for a seed.
    pub fn new(board: &DeviceProfile, seed: u64) -> Conditions {
        let nominal = &board.power_modes[0];
        let rate = |m: &PowerMode| {
            [
                (m.cpu_cores * m.cpu_clock_ghz) / (nominal.cpu_cores * nominal.cpu_clock_ghz),
                m.gpu_rate(nominal),
                m.memory_rate(nominal),
            ]
        };
        let modes = board.power_modes.iter().map(rate).collect();
        Conditions::of_modes(modes, board.link.shared_memory, seed)
    }

    /// The sequence of a machine with these modes: CPU rate, GPU rate and memory ratio of each.
    pub fn of_modes(modes: Vec<[f64; 3]>, shared_memory: bool, seed: u64) -> Conditions {
        Conditions {
            modes,
            shared_memory,
            rng: Pcg32::seed_from_u64(seed),
            cpu_busy: Drawn::default(),
            gpu_busy: Drawn::default(),
            mode: Drawn::default(),
            thermal: Drawn::default(),
        }
    }
}

impl Iterator for Conditions {
    type Item = (HardwareState, u32);

    /// The next state and for how many inferences it holds; never `None`.
    fn next(&mut self) -> Option<(HardwareState, u32)> {
        let rng = &mut self.rng;
        let mut hold = |left: &mut u32| {
            let expired = *left == 0;
            if expired {
                *left = rng.random_range(20..=200);
            }
            expired
        };
        let expired = [
            hold(&mut self.cpu_busy.left),
            hold(&mut self.gpu_busy.left),
            hold(&mut self.mode.left),
            hold(&mut self.thermal.left),
        ];
        if expired[0] {
            self.cpu_busy.value = self.rng.random_range(0.0..=0.8);
        }
        if expired[1] {
            self.gpu_busy.value = self.rng.random_range(0.0..=0.8);
        }
        if expired[2] {
            self.mode.value = self.rng.random_range(0..self.modes.len());
        }
        if expired[3] {
            self.thermal.value = self.rng.random_range(0.6..=1.0);
        }
        let lefts = [self.cpu_busy.left, self.gpu_busy.left, self.mode.left, self.thermal.left];
        let span = lefts.into_iter().min().unwrap_or(1);
        self.cpu_busy.left -= span;
        self.gpu_busy.left -= span;
        self.mode.left -= span;
        self.thermal.left -= span;
        let [cpu, gpu, memory] = self.modes[self.mode.value];
        let (cpu_busy, gpu_busy) = (self.cpu_busy.value, self.gpu_busy.value);
        let others = if self.shared_memory { cpu_busy + gpu_busy } else { cpu_busy };
        let left = 1.0 - MEMORY_PRESSURE * others;
        let link = match self.shared_memory {
            true => memory * left,
            // A bus of its own: the GPU's other users copy as well.
            false => 1.0 - 0.5 * gpu_busy,
        };
        let state = HardwareState {
            cpu_busy,
            gpu_busy,
            cpu_rate: cpu * self.thermal.value,
            gpu_rate: gpu * self.thermal.value,
            memory: memory * left,
            link,
            wake_ns: 0.0,
        };
        Some((state, span))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_those_promised_and_repeat() {
        let modes = vec![[1.0, 1.0, 1.0], [0.5, 0.4, 0.8]];
        let states: Vec<_> = Conditions::of_modes(modes.clone(), true, 7).take(4000).collect();
        let again: Vec<_> = Conditions::of_modes(modes, true, 7).take(4000).collect();
        assert_eq!(states, again);
        let mean = |f: &dyn Fn(&HardwareState) -> f64| {
            let weight: f64 = states.iter().map(|(_, n)| f64::from(*n)).sum();
            states.iter().map(|(s, n)| f(s) * f64::from(*n)).sum::<f64>() / weight
        };
        assert!((mean(&|s| s.cpu_busy) - 0.4).abs() < 0.02);
        assert!((mean(&|s| s.gpu_busy) - 0.4).abs() < 0.02);
        // Half the time at 1, half at 0.4, times a thermal factor of 0.8 on average.
        assert!((mean(&|s| s.gpu_rate) - 0.8 * 0.7).abs() < 0.02);
        for (s, n) in &states {
            assert!((1..=200).contains(n));
            assert!((0.0..=0.8).contains(&s.cpu_busy) && (0.0..=0.8).contains(&s.gpu_busy));
            assert!(s.memory > 0.0 && s.memory <= 1.0 && s.cpu_rate >= 0.3 && s.cpu_rate <= 1.0);
        }
    }

    #[test]
    fn load_slows_the_processor_it_is_on() {
        let nominal = DeviceProfile::find("jetson-agx-orin").unwrap().machine(Default::default());
        let state = HardwareState { gpu_busy: 0.5, ..HardwareState::default() };
        let loaded = state.machine(&nominal);
        assert_eq!(loaded.cpu, nominal.cpu);
        assert_eq!(loaded.gpu.flops_per_s[0], 0.5 * nominal.gpu.flops_per_s[0]);
        assert_eq!(loaded.gpu.launch_ns, 2.0 * nominal.gpu.launch_ns);
        assert_eq!(HardwareState::default().machine(&nominal), nominal);
    }

    #[test]
    fn measured_costs_slow_likewise() {
        let cost = Some(Cost { latency_ns: 1000, fixed_ns: 100 });
        let node = crate::profile::NodeCosts { cpu: cost, gpu: cost, ..Default::default() };
        let nominal = Profile { nodes: vec![node], submit_ns: 50, ..Profile::default() };
        assert_eq!(HardwareState::default().slow(&nominal), nominal);
        let state = HardwareState { cpu_busy: 0.75, link: 0.5, ..HardwareState::default() };
        let slow = state.slow(&nominal);
        assert_eq!(slow.nodes[0].cpu, Some(Cost { latency_ns: 4000, fixed_ns: 400 }));
        assert_eq!(slow.nodes[0].gpu, cost);
        assert_eq!(slow.submit_ns, 200);
        assert_eq!(slow.upload.bytes_per_s, 0.5 * nominal.upload.bytes_per_s);
    }

    #[test]
    fn buckets_and_distances_agree() {
        let at = |cpu_busy| HardwareState { cpu_busy, ..HardwareState::default() };
        assert_eq!(at(0.05).bucket(), at(0.0).bucket());
        assert_ne!(at(0.5).bucket(), at(0.0).bucket());
        assert!(at(0.0).distance(&at(0.05)) < 0.5);
        let two = at(1.0 - 1.0 / (BUCKET * BUCKET));
        assert!((at(0.0).distance(&two) - 2.0).abs() < 1e-9);
        assert_eq!(two.distance(&at(0.0)), at(0.0).distance(&two));
    }
}
