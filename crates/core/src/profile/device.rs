//! Device profiles: published figures of machines that are not here, each with its source beside
//! it, and the roofline that follows from them.

use std::{collections::BTreeMap, fmt, path::Path, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Contention, DeviceModel, Link, MachineModel, Power, PowerSource};

/// A number and where it comes from: a document, an address, or `assumed: ` and the reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// The number, in the unit that the field's name says.
    pub value: f64,
    /// Its source.
    pub source: String,
}

/// Published figures of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceProfile {
    /// Its name, as `--target` knows it.
    pub name: String,
    /// Its name in words.
    pub title: String,
    /// The CPU.
    pub cpu: ProcessorFigures,
    /// The GPU.
    pub gpu: ProcessorFigures,
    /// Between host and device.
    pub link: LinkFigures,
    /// From the submission of a GPU segment to its start, plus the notice of its end.
    pub submit_us: Figure,
    /// What an eager framework takes to launch one kernel.
    pub eager_launch_us: Figure,
    /// How the processors slow each other down.
    pub contention: ContentionFigures,
    /// Power of the whole board when nothing runs.
    pub idle_w: Figure,
    /// Memory of the board.
    pub memory_gib: Figure,
    /// The modes that its maker publishes; the first is the nominal one.
    pub power_modes: Vec<PowerMode>,
    /// Latencies that others have measured on it.
    #[serde(default)]
    pub published_latencies: Vec<PublishedLatency>,
    /// Latencies on similar hardware, for comparison.
    #[serde(default)]
    pub related_latencies: Vec<PublishedLatency>,
    /// Engines whose rows are slower than those that set the efficiencies, and by how much.
    #[serde(default)]
    pub engine_time_factor: BTreeMap<String, Figure>,
    /// Rows that could not be found.
    #[serde(default)]
    pub missing: Option<String>,
}

/// Figures of one processor at its nominal clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ProcessorFigures {
    pub model: String,
    /// Cores, or multiprocessors.
    pub cores: Figure,
    pub clock_ghz: Figure,
    /// Peak rates.
    pub fp32_gflops: Figure,
    pub fp16_gflops: Option<Figure>,
    pub int8_gops: Option<Figure>,
    /// Attained memory bandwidth.
    pub bandwidth_gbs: Figure,
    /// Last cache.
    pub cache_mib: Figure,
    pub cache_bandwidth_gbs: Option<Figure>,
    /// Start of one kernel.
    pub launch_us: Figure,
    /// Operator size at which half of the attained rate is reached.
    pub half_rate_mflop: Figure,
    /// Attained share of the peak in large operators.
    pub efficiency: EfficiencyFigures,
    /// Share of a large operator that more cores do not speed up.
    #[serde(default)]
    pub serial_share: Option<Figure>,
    /// See [`DeviceModel::sparse_efficiency`].
    pub sparse_efficiency: Option<Figure>,
    #[serde(default)]
    pub sparse_note: Option<String>,
    /// Power beyond idle while it computes.
    pub power_w: Figure,
}

/// Attained shares of the peak.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct EfficiencyFigures {
    pub matmul: Figure,
    pub convolution: Figure,
    pub depthwise: Figure,
}

/// Figures of the way between host and device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct LinkFigures {
    pub shared_memory: bool,
    pub upload_gbs: Figure,
    pub download_gbs: Figure,
    pub copy_latency_us: Figure,
}

/// Factors by which a kernel slows while the other processor computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ContentionFigures {
    pub cpu: Figure,
    pub gpu: Figure,
}

/// A power mode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct PowerMode {
    pub name: String,
    /// Cores that are on.
    pub cpu_cores: f64,
    pub cpu_clock_ghz: f64,
    pub gpu_clock_ghz: f64,
    /// Memory bandwidth, as a share of the nominal mode's.
    pub memory_clock_ratio: f64,
    /// Parts of the GPU that are on, where the mode switches some off.
    #[serde(default)]
    pub gpu_tpc: Option<f64>,
    pub source: String,
}

impl PowerMode {
    /// The GPU's parts that are on times their clock, over those of another mode of the board.
    pub fn gpu_rate(&self, nominal: &PowerMode) -> f64 {
        let rate = |m: &PowerMode| m.gpu_tpc.unwrap_or(1.0) * m.gpu_clock_ghz;
        rate(self) / rate(nominal)
    }

    /// The memory's bandwidth over that of another mode of the board.
    pub fn memory_rate(&self, nominal: &PowerMode) -> f64 {
        self.memory_clock_ratio / nominal.memory_clock_ratio
    }
}

/// A latency that somebody has published.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct PublishedLatency {
    /// A built-in model's name.
    pub model: String,
    /// `cpu` or `gpu`.
    pub processor: String,
    pub precision: Precision,
    pub batch: usize,
    pub latency_ms: f64,
    /// CPU threads; all cores if unset.
    pub threads: Option<f64>,
    pub framework: String,
    /// The board's mode, by name.
    #[serde(default)]
    pub power_mode: Option<String>,
    /// The hardware, where it is not the board itself.
    #[serde(default)]
    pub hardware: Option<String>,
    pub note: String,
    pub source: String,
    /// Took part in choosing the efficiencies; the other rows only check them.
    #[serde(default)]
    pub fit: bool,
    /// Of an eager framework: not what the model is about.
    #[serde(default)]
    pub eager: bool,
}

/// Element type of products in the cost model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Precision {
    #[default]
    Fp32,
    Fp16,
    Int8,
}

impl Precision {
    /// Bytes of an element over those of an f32.
    pub fn bytes_ratio(self) -> f64 {
        match self {
            Precision::Fp32 => 1.0,
            Precision::Fp16 => 0.5,
            Precision::Int8 => 0.25,
        }
    }
}

/// Why there is no such profile.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// Neither a built-in name nor a file.
    #[error("no device profile '{name}': give one of {}, or the path of a profile", known.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
        /// The built-in ones.
        known: Vec<String>,
    },
    /// The file cannot be read or understood.
    #[error("device profile {name}: {reason}")]
    Invalid {
        /// File or name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Built-in profiles by name.
const BUILT_IN: [(&str, &str); 5] = [
    ("jetson-agx-orin", include_str!("devices/jetson-agx-orin.json")),
    ("jetson-orin-nano", include_str!("devices/jetson-orin-nano.json")),
    ("minipc-780m", include_str!("devices/minipc-780m.json")),
    ("desktop-rtx4060", include_str!("devices/desktop-rtx4060.json")),
    ("raspberry-pi-5", include_str!("devices/raspberry-pi-5.json")),
];

/// What a machine says of itself (device tree, DMI, CPU), and the built-in profile of such
/// machines. The desktop's is missing: nothing in a desktop's name says which card it has.
const BOARDS: [(&str, &str); 6] = [
    ("Jetson AGX Orin", "jetson-agx-orin"),
    ("Jetson Orin Nano", "jetson-orin-nano"),
    ("Raspberry Pi 5", "raspberry-pi-5"),
    ("Ryzen 7 7840HS", "minipc-780m"),
    ("Ryzen 7 7840U", "minipc-780m"),
    ("Ryzen 7 8845HS", "minipc-780m"),
];

/// Name of the built-in profile of a machine that gives itself this name.
pub fn profile_of_board(name: &str) -> Option<&'static str> {
    BOARDS.iter().find(|(board, _)| name.contains(board)).map(|(_, profile)| *profile)
}

impl DeviceProfile {
    /// Names of the built-in profiles.
    pub fn names() -> Vec<&'static str> {
        BUILT_IN.iter().map(|(name, _)| *name).collect()
    }

    /// A built-in profile by name, or the profile in a file.
    ///
    /// # Errors
    /// See [`ProfileError`].
    pub fn find(name: &str) -> Result<DeviceProfile, ProfileError> {
        if let Some((_, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) {
            return DeviceProfile::parse(name, text);
        }
        if !Path::new(name).exists() {
            let known = DeviceProfile::names().into_iter().map(str::to_owned).collect();
            return Err(ProfileError::Unknown { name: name.to_owned(), known });
        }
        let invalid = |reason: String| ProfileError::Invalid { name: name.to_owned(), reason };
        let text = std::fs::read_to_string(name).map_err(|e| invalid(e.to_string()))?;
        DeviceProfile::parse(name, &text)
    }

    fn parse(name: &str, text: &str) -> Result<DeviceProfile, ProfileError> {
        let invalid = |reason: String| ProfileError::Invalid { name: name.to_owned(), reason };
        let profile: DeviceProfile =
            serde_json::from_str(text).map_err(|e| invalid(e.to_string()))?;
        profile.check().map_err(invalid)?;
        Ok(profile)
    }

    /// Rates must be positive, shares between 0 and 1.
    fn check(&self) -> Result<(), String> {
        let positive = |what: &str, f: &Figure| match f.value.is_finite() && f.value > 0.0 {
            true => Ok(()),
            false => Err(format!("{what} is {}: it must be above 0", f.value)),
        };
        for (name, p) in [("cpu", &self.cpu), ("gpu", &self.gpu)] {
            let rates = [
                ("cores", &p.cores),
                ("clock_ghz", &p.clock_ghz),
                ("fp32_gflops", &p.fp32_gflops),
                ("bandwidth_gbs", &p.bandwidth_gbs),
                ("efficiency.matmul", &p.efficiency.matmul),
                ("efficiency.convolution", &p.efficiency.convolution),
                ("efficiency.depthwise", &p.efficiency.depthwise),
                ("launch_us", &p.launch_us),
                ("power_w", &p.power_w),
            ];
            for (field, figure) in rates {
                positive(&format!("{name}.{field}"), figure)?;
            }
        }
        positive("link.upload_gbs", &self.link.upload_gbs)?;
        positive("link.download_gbs", &self.link.download_gbs)?;
        if self.power_modes.is_empty() {
            return Err("power_modes is empty: give at least the nominal mode".to_owned());
        }
        for m in &self.power_modes {
            let figures = [m.cpu_cores, m.cpu_clock_ghz, m.gpu_clock_ghz, m.memory_clock_ratio];
            if figures.iter().any(|f| !(f.is_finite() && *f > 0.0)) {
                return Err(format!("power mode '{}' has a figure that is not above 0", m.name));
            }
        }
        Ok(())
    }

    /// The roofline at nominal clocks.
    pub fn machine(&self, precision: Precision) -> MachineModel {
        let us = |f: &Figure| f.value * 1e3;
        let link = |rate: &Figure| Link {
            latency_ns: us(&self.link.copy_latency_us) as u64,
            bytes_per_s: rate.value * 1e9,
        };
        MachineModel {
            name: self.title.clone(),
            cpu: self.cpu.model(precision),
            gpu: self.gpu.model(precision),
            upload: link(&self.link.upload_gbs),
            download: link(&self.link.download_gbs),
            shared_memory: self.link.shared_memory,
            submit_ns: us(&self.submit_us) as u64,
            // Waking a thread that waits for the other lane.
            handoff_ns: us(&self.cpu.launch_us) as u64,
            contention: Contention {
                cpu: self.contention.cpu.value,
                gpu: self.contention.gpu.value,
            },
            power: Some(Power {
                idle_w: self.idle_w.value,
                cpu_w: self.cpu.power_w.value,
                gpu_w: self.gpu.power_w.value,
                source: PowerSource::Published,
            }),
        }
    }

    /// [`DeviceProfile::machine`] with an eager framework's launch costs on the GPU.
    pub fn eager_machine(&self, precision: Precision) -> MachineModel {
        let mut machine = self.machine(precision);
        machine.gpu.launch_ns = self.eager_launch_us.value * 1e3;
        machine
    }
}

impl ProcessorFigures {
    fn model(&self, precision: Precision) -> DeviceModel {
        let peak = match precision {
            Precision::Fp32 => None,
            Precision::Fp16 => self.fp16_gflops.as_ref(),
            Precision::Int8 => self.int8_gops.as_ref(),
        };
        let peak = peak.unwrap_or(&self.fp32_gflops).value * 1e9;
        // A time: filling the cores does not shrink with narrower elements.
        let fill_ns = self.half_rate_mflop.value * 1e6 / self.fp32_gflops.value;
        // Bytes are counted as those of f32.
        let shrink = 1.0 / precision.bytes_ratio();
        let bytes_per_s = self.bandwidth_gbs.value * 1e9 * shrink;
        let cache = self.cache_bandwidth_gbs.as_ref().map(|f| f.value * 1e9 * shrink);
        let e = &self.efficiency;
        let attained = [e.matmul.value, e.convolution.value, e.depthwise.value, 1.0];
        DeviceModel {
            name: self.model.clone(),
            flops_per_s: attained.map(|share| share * peak),
            bytes_per_s,
            cache_bytes_per_s: cache.unwrap_or(bytes_per_s).max(bytes_per_s),
            cache_bytes: self.cache_mib.value * 1024.0 * 1024.0 * shrink,
            launch_ns: self.launch_us.value * 1e3,
            fill_ns: attained.map(|share| fill_ns / share),
            sparse_efficiency: self.sparse_efficiency.as_ref().map_or(0.0, |f| f.value),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::Fp32 => "fp32",
            Precision::Fp16 => "fp16",
            Precision::Int8 => "int8",
        })
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Precision, String> {
        match text {
            "fp32" => Ok(Precision::Fp32),
            "fp16" => Ok(Precision::Fp16),
            "int8" => Ok(Precision::Int8),
            _ => Err(format!("unknown precision '{text}': give fp32, fp16 or int8")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_profiles_are_whole_and_sourced() {
        for name in DeviceProfile::names() {
            let profile = DeviceProfile::find(name).unwrap();
            assert_eq!(profile.name, name);
            let json = serde_json::to_value(&profile).unwrap();
            let mut figures = 0;
            visit(&json, &mut |source| {
                assert!(source.len() > 8, "{name}: a source is missing: '{source}'");
                figures += 1;
            });
            assert!(figures > 30, "{name}: {figures} sources");
        }
    }

    fn visit(json: &serde_json::Value, check: &mut dyn FnMut(&str)) {
        match json {
            serde_json::Value::Object(map) => {
                for (key, value) in map {
                    match value.as_str() {
                        Some(text) if key == "source" => check(text),
                        _ => visit(value, check),
                    }
                }
            }
            serde_json::Value::Array(list) => list.iter().for_each(|v| visit(v, check)),
            _ => {}
        }
    }

    #[test]
    fn unknown_and_broken_profiles_are_named() {
        let error = DeviceProfile::find("jetson-xavier").unwrap_err().to_string();
        assert!(error.contains("jetson-xavier") && error.contains("jetson-agx-orin"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.json");
        let text = BUILT_IN[0].1;
        let write = |json: &serde_json::Value| std::fs::write(&path, json.to_string()).unwrap();
        let find = || DeviceProfile::find(path.to_str().unwrap());
        let mut json: serde_json::Value = serde_json::from_str(text).unwrap();
        write(&json);
        assert!(find().is_ok());
        json["cpu"]["fp32_gflops"]["value"] = (-1.0).into();
        write(&json);
        let error = find().unwrap_err().to_string();
        assert!(error.contains("cpu.fp32_gflops") && error.contains("p.json"), "{error}");
        json["cpu"]["fp32_gflops"] = serde_json::Value::Null;
        write(&json);
        assert!(matches!(find(), Err(ProfileError::Invalid { .. })));
    }

    #[test]
    fn boards_find_their_profiles() {
        let nano = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super";
        assert_eq!(profile_of_board(nano), Some("jetson-orin-nano"));
        assert_eq!(profile_of_board("Raspberry Pi 5 Model B Rev 1.0"), Some("raspberry-pi-5"));
        assert_eq!(profile_of_board("NVIDIA Jetson Orin NX Engineering Reference"), None);
        for (_, profile) in BOARDS {
            assert!(DeviceProfile::find(profile).is_ok(), "{profile}");
        }
    }

    #[test]
    fn half_the_bytes_move_twice_as_fast() {
        let profile = DeviceProfile::find("jetson-orin-nano").unwrap();
        let (full, half) = (profile.machine(Precision::Fp32), profile.machine(Precision::Fp16));
        assert_eq!(half.gpu.bytes_per_s, 2.0 * full.gpu.bytes_per_s);
        assert!(half.gpu.flops_per_s[0] >= full.gpu.flops_per_s[0]);
    }
}
