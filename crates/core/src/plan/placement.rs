//! The one decision: for every node, which processor runs it, or how they share it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::ir::Graph;

/// Where a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub enum Place {
    /// On the CPU.
    #[default]
    Cpu,
    /// On the GPU.
    Gpu,
    /// On both: this share of the output (above 0, below 1) on the GPU, its leading part.
    Split(f32),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Cpu => f.write_str("cpu"),
            Place::Gpu => f.write_str("gpu"),
            Place::Split(share) => write!(f, "split:{share}"),
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        match text {
            "cpu" => Ok(Place::Cpu),
            "gpu" => Ok(Place::Gpu),
            _ => text
                .strip_prefix("split:")
                .and_then(|share| share.parse::<f32>().ok())
                .filter(|share| *share > 0.0 && *share < 1.0)
                .map(Place::Split)
                .ok_or_else(|| {
                    format!(
                        "'{text}' is no place: give cpu, gpu or split:SHARE with the GPU's share \
                         above 0 and below 1"
                    )
                }),
        }
    }
}

impl Serialize for Place {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Place, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A place for every node of a graph, by node index. The place of a view has no effect.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Placement {
    /// Places by [`crate::ir::NodeId`].
    pub places: Vec<Place>,
}

impl Placement {
    /// Every node in the same place.
    pub fn uniform(graph: &Graph, place: Place) -> Placement {
        Placement { places: vec![place; graph.nodes.len()] }
    }

    /// Counts of (cpu, gpu, split) nodes.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |f: fn(&Place) -> bool| self.places.iter().filter(|p| f(p)).count();
        (
            count(|p| *p == Place::Cpu),
            count(|p| *p == Place::Gpu),
            count(|p| matches!(p, Place::Split(_))),
        )
    }
}

impl fmt::Display for Placement {
    /// Runs of equal places: `cpu x3, gpu x10, split:0.5 x2`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, run) in self.places.chunk_by(|a, b| a == b).enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{} x{}", run[0], run.len())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_back_and_refuse_bad_shares() {
        for place in [Place::Cpu, Place::Gpu, Place::Split(0.25)] {
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        for bad in ["split:0", "split:1", "split:nan", "split:", "npu", "split:-1"] {
            let error = bad.parse::<Place>().unwrap_err();
            assert!(error.contains(bad) && error.contains("split:SHARE"), "{error}");
        }
    }
}
