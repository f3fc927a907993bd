//! What NVML's sensors say of a GPU.

use nvml_wrapper::{
    bitmasks::device::ThrottleReasons,
    enum_wrappers::device::{Clock, TemperatureSensor},
};
use sparoa_core::monitor::{GpuReadings, GpuSensors};

use super::NvmlGpu;

impl GpuSensors for NvmlGpu {
    fn read(&mut self) -> GpuReadings {
        readings(
            self.with_device(|d| Ok(d.utilization_rates()?.gpu)),
            self.with_device(|d| d.clock_info(Clock::Graphics)),
            self.with_device(|d| d.max_clock_info(Clock::Graphics)),
            self.with_device(|d| d.temperature(TemperatureSensor::Gpu)),
            self.with_device(|d| d.current_throttle_reasons()),
        )
    }
}

/// From percent, MHz, degrees Celsius and reasons; what is out of its range is not known.
fn readings(
    percent: Option<u32>,
    clock_mhz: Option<u32>,
    max_clock_mhz: Option<u32>,
    celsius: Option<u32>,
    reasons: Option<ThrottleReasons>,
) -> GpuReadings {
    let clock = clock_mhz.zip(max_clock_mhz).filter(|(now, most)| *now > 0 && *most > 0);
    // Idle, sync boost and clocks that somebody set are no sign of heat or power.
    let slowed = ThrottleReasons::SW_POWER_CAP
        | ThrottleReasons::HW_SLOWDOWN
        | ThrottleReasons::SW_THERMAL_SLOWDOWN
        | ThrottleReasons::HW_THERMAL_SLOWDOWN
        | ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN;
    GpuReadings {
        busy: percent.filter(|p| *p <= 100).map(|p| f64::from(p) / 100.0),
        clock: clock.map(|(now, most)| f64::from(now) / f64::from(most)),
        temperature_c: celsius.filter(|t| (1..150).contains(t)).map(f64::from),
        throttled: reasons.map(|r| r.intersects(slowed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_shares_and_nonsense_becomes_nothing() {
        let reasons = ThrottleReasons::GPU_IDLE | ThrottleReasons::APPLICATIONS_CLOCKS_SETTING;
        let read = readings(Some(37), Some(990), Some(1980), Some(41), Some(reasons));
        let expected = GpuReadings {
            busy: Some(0.37),
            clock: Some(0.5),
            temperature_c: Some(41.0),
            throttled: Some(false),
        };
        assert_eq!(read, expected);
        let hot = Some(ThrottleReasons::SW_THERMAL_SLOWDOWN);
        assert_eq!(readings(None, None, None, None, hot).throttled, Some(true));
        let none = GpuReadings::default();
        assert_eq!(readings(None, None, None, None, None), none);
        assert_eq!(readings(Some(4000), Some(990), Some(0), Some(0), None), none);
        assert_eq!(readings(None, Some(0), Some(1980), Some(400), None), none);
        assert_eq!(readings(None, Some(990), None, None, None), none);
    }

    #[test]
    fn a_gpu_that_is_here_answers() {
        let nvidia =
            crate::adapters().into_iter().find(|a| a.name.to_lowercase().contains("nvidia"));
        let Some(adapter) = nvidia else {
            println!("skipped: there is no NVIDIA GPU");
            return;
        };
        match NvmlGpu::open(&adapter.name) {
            Err(e) => println!("skipped: {e}"),
            Ok(mut gpu) => {
                let read = gpu.read();
                println!("{}: {read:?}", adapter.name);
                assert!(read != GpuReadings::default());
            }
        }
    }
}
