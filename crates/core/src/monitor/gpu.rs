//! Sensors of the GPU: those of `/sys` (AMD, Intel, GPUs of boards), and the place of others.

use std::path::Path;

use super::{
    thermal::Temperature,
    watched::{Watched, entries, number, text},
};

/// What sensors say of the GPU at one moment; `None` is a sensor that is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GpuReadings {
    /// Share of the time in which something ran on it, our own work included, 0 to 1.
    pub busy: Option<f64>,
    /// Clock over its highest.
    pub clock: Option<f64>,
    /// Degrees Celsius.
    pub temperature_c: Option<f64>,
    /// Whether heat or power slows it.
    pub throttled: Option<bool>,
}

/// Sensors of a GPU that `/sys` does not show; implemented where a vendor's library is spoken.
pub trait GpuSensors: Send {
    /// Reads them now.
    fn read(&mut self) -> GpuReadings;
}

/// The first GPU that `/sys` tells of.
#[derive(Debug)]
pub(super) struct SysfsGpu {
    /// It is part of the CPU's chip, hence the only one that a vendor's library can speak of.
    pub soc: bool,
    busy: Option<Scaled>,
    clock: Option<Scaled>,
    temperature: Temperature,
    throttled: Option<Watched>,
}

/// A sensor and its full scale.
#[derive(Debug)]
struct Scaled {
    sensor: Watched,
    full: f64,
}

impl Scaled {
    fn find(path: &Path, full: Option<f64>) -> Option<Scaled> {
        let full = full.filter(|f| f.is_finite() && *f > 0.0)?;
        Some(Scaled { sensor: Watched::open(path)?, full })
    }

    fn share(&mut self) -> Option<f64> {
        let share = self.sensor.number::<f64>()? / self.full;
        (share.is_finite() && share >= 0.0).then_some(share)
    }
}

impl SysfsGpu {
    pub fn find(root: &Path) -> Option<SysfsGpu> {
        let boards = entries(&root.join("sys/class/devfreq"));
        let board = boards.iter().find_map(|dir| SysfsGpu::of_board(root, dir));
        let cards = || entries(&root.join("sys/class/drm"));
        board
            .or_else(|| cards().iter().find_map(|card| SysfsGpu::amd(card)))
            .or_else(|| cards().iter().find_map(|card| SysfsGpu::intel(card)))
    }

    /// A GPU on the CPU's chip: Jetson's, with its load in thousandths, and others without.
    fn of_board(root: &Path, dir: &Path) -> Option<SysfsGpu> {
        let name = dir.file_name()?.to_str()?.to_lowercase();
        let names = ["gpu", "ga10b", "gv11b", "gp10b", "gm20b", "mali"];
        if !names.iter().any(|n| name.contains(n)) {
            return None;
        }
        // The list is of the hardware; the maximum is what the power mode leaves of it.
        let highest = text(&dir.join("available_frequencies"))
            .and_then(|list| {
                list.split_whitespace().filter_map(|f| f.parse().ok()).reduce(f64::max)
            })
            .or_else(|| number(&dir.join("max_freq")));
        let loads = [dir.join("device/load"), root.join("sys/devices/platform/gpu.0/load")];
        Some(SysfsGpu {
            soc: true,
            busy: loads.iter().find_map(|path| Scaled::find(path, Some(1000.0))),
            clock: Scaled::find(&dir.join("cur_freq"), highest),
            temperature: Temperature::of_soc_gpu(root),
            throttled: None,
        })
    }

    fn amd(card: &Path) -> Option<SysfsGpu> {
        let device = card.join("device");
        let busy = Scaled::find(&device.join("gpu_busy_percent"), Some(100.0))?;
        // Levels as `2: 2400Mhz *`, lowest first.
        let highest = text(&device.join("pp_dpm_sclk")).and_then(|levels| {
            let mhz = levels.lines().last()?.split_once(':')?.1.trim();
            Some(mhz.split_once("Mhz")?.0.parse::<f64>().ok()? * 1e6)
        });
        let chips = entries(&device.join("hwmon"));
        Some(SysfsGpu {
            soc: false,
            busy: Some(busy),
            clock: chips.iter().find_map(|c| Scaled::find(&c.join("freq1_input"), highest)),
            temperature: Temperature::of_card(&device),
            throttled: None,
        })
    }

    /// Its driver tells no load without special rights.
    fn intel(card: &Path) -> Option<SysfsGpu> {
        let highest = number(&card.join("gt_RP0_freq_mhz"));
        Some(SysfsGpu {
            soc: false,
            busy: None,
            clock: Some(Scaled::find(&card.join("gt_act_freq_mhz"), highest)?),
            temperature: Temperature::of_card(&card.join("device")),
            throttled: Watched::open(&card.join("gt/gt0/throttle_reason_status")),
        })
    }

    pub fn read(&mut self) -> GpuReadings {
        GpuReadings {
            busy: self.busy.as_mut().and_then(Scaled::share).map(|b| b.min(1.0)),
            // A GPU that sleeps has no clock; it is not one that is slowed to nothing.
            clock: self.clock.as_mut().and_then(Scaled::share).filter(|c| *c > 0.0),
            temperature_c: self.temperature.sample(),
            throttled: self.throttled.as_mut().and_then(Watched::number::<u32>).map(|s| s != 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::testing::Tree;

    #[test]
    fn jetson_tells_thousandths() {
        let tree = Tree::new();
        let dir = "sys/class/devfreq/17000000.gpu";
        tree.write("sys/class/devfreq/2c60000.external-memory-controller/cur_freq", "1");
        assert!(SysfsGpu::find(tree.root()).is_none());
        tree.write(&format!("{dir}/cur_freq"), "306000000\n");
        tree.write(&format!("{dir}/max_freq"), "612000000\n");
        tree.write(&format!("{dir}/available_frequencies"), "306000000 612000000 1224000000 \n");
        tree.write(&format!("{dir}/device/load"), "750\n");
        tree.write("sys/class/thermal/thermal_zone0/type", "gpu-thermal");
        tree.write("sys/class/thermal/thermal_zone0/temp", "45000");
        let mut gpu = SysfsGpu::find(tree.root()).unwrap();
        assert!(gpu.soc);
        let read = GpuReadings {
            busy: Some(0.75),
            clock: Some(0.25),
            temperature_c: Some(45.0),
            throttled: None,
        };
        assert_eq!(gpu.read(), read);
        tree.write(&format!("{dir}/available_frequencies"), "");
        assert_eq!(SysfsGpu::find(tree.root()).unwrap().read().clock, Some(0.5));
        tree.write(&format!("{dir}/device/load"), "N/A");
        tree.write(&format!("{dir}/cur_freq"), "0");
        tree.write("sys/class/thermal/thermal_zone0/temp", "-256000");
        assert_eq!(gpu.read(), GpuReadings::default());
    }

    #[test]
    fn amd_and_intel_cards() {
        let tree = Tree::new();
        tree.write("sys/class/drm/version", "drm 1.1.0");
        tree.write("sys/class/drm/card0/gt_act_freq_mhz", "450\n");
        tree.write("sys/class/drm/card0/gt_RP0_freq_mhz", "900\n");
        tree.write("sys/class/drm/card0/gt/gt0/throttle_reason_status", "1\n");
        let mut intel = SysfsGpu::find(tree.root()).unwrap();
        let read = intel.read();
        assert_eq!((read.busy, read.clock, read.throttled), (None, Some(0.5), Some(true)));
        tree.write("sys/class/drm/card0/gt_act_freq_mhz", "0\n");
        assert_eq!(intel.read().clock, None);

        // The card with more sensors goes first.
        let device = "sys/class/drm/card1/device";
        tree.write(&format!("{device}/gpu_busy_percent"), "40\n");
        tree.write(&format!("{device}/pp_dpm_sclk"), "0: 500Mhz\n1: 600Mhz *\n2: 2400Mhz\n");
        tree.write(&format!("{device}/hwmon/hwmon3/name"), "amdgpu\n");
        tree.write(&format!("{device}/hwmon/hwmon3/freq1_input"), "600000000\n");
        tree.write(&format!("{device}/hwmon/hwmon3/temp1_input"), "61000\n");
        let mut amd = SysfsGpu::find(tree.root()).unwrap();
        assert!(!amd.soc);
        let read = amd.read();
        assert_eq!((read.busy, read.clock), (Some(0.4), Some(0.25)));
        assert_eq!(read.temperature_c, Some(61.0));
        tree.write(&format!("{device}/pp_dpm_sclk"), "S: garbage\n");
        assert_eq!(SysfsGpu::find(tree.root()).unwrap().read().clock, None);
        tree.write(&format!("{device}/gpu_busy_percent"), "NaN\n");
        assert_eq!(amd.read().busy, None);
    }
}
