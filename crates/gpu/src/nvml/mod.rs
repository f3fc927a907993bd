//! NVIDIA's management library, loaded at run time: what it tells of the card that an adapter
//! stands for. Jetsons and other vendors' cards have none.

mod energy;

use nvml_wrapper::{Device, Nvml, error::NvmlError};

pub use energy::energy_sensors;

/// A card, opened.
pub struct NvmlGpu {
    nvml: Nvml,
    index: u32,
}

/// Why there is none.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NvmlUnavailable {
    /// The library is missing or its driver does not answer.
    #[error("NVML cannot be used: {0}")]
    NoLibrary(String),
    /// No card has the adapter's name.
    #[error("NVML knows no card called '{adapter}' (there are: {known})")]
    NoSuchCard {
        /// The adapter.
        adapter: String,
        /// The cards.
        known: String,
    },
    /// Several cards have it.
    #[error("NVML knows {count} cards called '{adapter}', and which of them it is cannot be told")]
    Ambiguous {
        /// The adapter.
        adapter: String,
        /// How many.
        count: usize,
    },
}

impl NvmlGpu {
    /// The card with an adapter's name.
    ///
    /// # Errors
    /// See [`NvmlUnavailable`].
    pub fn open(adapter_name: &str) -> Result<NvmlGpu, NvmlUnavailable> {
        let no_library = |e: NvmlError| NvmlUnavailable::NoLibrary(e.to_string());
        let nvml = Nvml::init().map_err(no_library)?;
        let count = nvml.device_count().map_err(no_library)?;
        let names: Vec<String> = (0..count)
            .map(|i| nvml.device_by_index(i).and_then(|d| d.name()).unwrap_or_default())
            .collect();
        let index = find(&names, adapter_name)?;
        Ok(NvmlGpu { nvml, index })
    }

    fn with_device<T>(&self, f: impl FnOnce(&Device) -> Result<T, NvmlError>) -> Option<T> {
        f(&self.nvml.device_by_index(self.index).ok()?).ok()
    }
}

/// Index of the only card with an adapter's name.
fn find(names: &[String], adapter: &str) -> Result<u32, NvmlUnavailable> {
    let same = |name: &&String| name.eq_ignore_ascii_case(adapter);
    let adapter = adapter.to_owned();
    match names.iter().filter(same).count() {
        0 => Err(NvmlUnavailable::NoSuchCard { adapter, known: names.join(", ") }),
        1 => Ok(names.iter().position(|name| same(&name)).unwrap_or(0) as u32),
        count => Err(NvmlUnavailable::Ambiguous { adapter, count }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_found_by_its_name_if_it_is_the_only_one() {
        let names = ["NVIDIA A2", "NVIDIA L4", "NVIDIA A2"].map(str::to_owned);
        assert_eq!(find(&names, "nvidia l4"), Ok(1));
        assert!(matches!(find(&names, "NVIDIA A2"), Err(NvmlUnavailable::Ambiguous { .. })));
        let error = find(&names, "NVIDIA L40").unwrap_err().to_string();
        assert!(
            error.contains("'NVIDIA L40'") && error.contains("NVIDIA A2, NVIDIA L4"),
            "{error}"
        );
    }

    #[test]
    fn a_machine_without_the_library_says_so() {
        match NvmlGpu::open("no such card") {
            Err(e @ NvmlUnavailable::NoLibrary(_)) => {
                assert!(e.to_string().starts_with("NVML cannot be used"), "{e}");
            }
            Err(NvmlUnavailable::NoSuchCard { known, .. }) => println!("there are: {known}"),
            _ => panic!("no card has this name"),
        }
    }
}
