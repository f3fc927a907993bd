//! The built-in models: torchvision's architectures with seeded weights, any batch size, and
//! their magnitude-pruned variants.

mod mobilenet;
mod net;
mod prune;
mod random;
mod resnet;
mod swin;
mod vit;
mod weights;

use std::fmt;

use crate::ir::Model;

pub use prune::{PruneScope, PrunedWeight, prune};
pub use random::random;

/// A built-in model.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Name, as in `zoo:NAME`.
    pub name: &'static str,
    /// Learned parameters.
    pub parameters: u64,
    /// 10^9 floating-point operations per image, 2 per multiply-add, of convolutions and matrix
    /// products.
    pub gflops: f64,
    /// The paper that introduced it.
    pub source: &'static str,
    build: fn(&str, u8) -> Model,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("name", &self.name).finish_non_exhaustive()
    }
}

const ENTRIES: &[Entry] = &[
    Entry {
        name: "resnet18",
        parameters: 11_689_512,
        gflops: 3.63,
        source: "Deep Residual Learning for Image Recognition, arXiv:1512.03385",
        build: resnet::resnet18,
    },
    Entry {
        name: "mobilenet_v2",
        parameters: 3_504_872,
        gflops: 0.60,
        source: "MobileNetV2: Inverted Residuals and Linear Bottlenecks, arXiv:1801.04381",
        build: mobilenet::mobilenet_v2,
    },
    Entry {
        name: "mobilenet_v3_small",
        parameters: 2_542_856,
        gflops: 0.11,
        source: "Searching for MobileNetV3, arXiv:1905.02244",
        build: mobilenet::mobilenet_v3_small,
    },
    Entry {
        name: "vit_b_16",
        parameters: 86_567_656,
        gflops: 35.13,
        source: "An Image is Worth 16x16 Words, arXiv:2010.11929",
        build: vit::vit_b_16,
    },
    Entry {
        name: "swin_t",
        parameters: 28_288_354,
        gflops: 8.99,
        source: "Swin Transformer, arXiv:2103.14030",
        build: swin::swin_t,
    },
];

/// The built-in models.
pub fn list() -> &'static [Entry] {
    ENTRIES
}

/// A request for a built-in model: `NAME` or `NAME@pPERCENT`.
#[derive(Clone, Copy, Debug)]
pub struct ZooModel {
    /// The architecture.
    pub entry: &'static Entry,
    /// Percent of each convolution's and linear layer's weights that are zero; 0 is dense.
    pub pruned_percent: u8,
}

/// Why a zoo name is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ZooError {
    /// No such model.
    #[error("zoo:{name}: no such model; there are {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A suffix that is not `@p1` to `@p99`.
    #[error(
        "zoo:{name}@{suffix}: the suffix is p and the percentage to prune, 1 to 99: zoo:{name}@p90"
    )]
    Suffix {
        /// The model.
        name: String,
        /// What followed the `@`.
        suffix: String,
    },
}

/// Reads `resnet18` or `resnet18@p90` (with or without `zoo:` in front).
///
/// # Errors
/// When the name or the suffix is unknown.
pub fn parse(text: &str) -> Result<ZooModel, ZooError> {
    let text = text.strip_prefix("zoo:").unwrap_or(text);
    let (name, suffix) = match text.split_once('@') {
        None => (text, None),
        Some((name, suffix)) => (name, Some(suffix)),
    };
    let entry = ENTRIES.iter().find(|e| e.name == name).ok_or_else(|| ZooError::Unknown {
        name: name.to_owned(),
        known: ENTRIES.iter().map(|e| e.name).collect::<Vec<_>>().join(", "),
    })?;
    let pruned_percent = match suffix {
        None => 0,
        Some(suffix) => suffix
            .strip_prefix('p')
            .and_then(|p| p.parse().ok())
            .filter(|p| (1..=99).contains(p))
            .ok_or_else(|| ZooError::Suffix { name: name.to_owned(), suffix: suffix.to_owned() })?,
    };
    Ok(ZooModel { entry, pruned_percent })
}

/// Builds a model by its zoo name; see [`parse`].
///
/// # Errors
/// When the name or the suffix is unknown.
pub fn build(text: &str) -> Result<Model, ZooError> {
    Ok(parse(text)?.build())
}

impl fmt::Display for ZooModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pruned_percent {
            0 => f.write_str(self.entry.name),
            p => write!(f, "{}@p{p}", self.entry.name),
        }
    }
}

impl ZooModel {
    /// Builds the model. The weights are the same on every machine; a pruned model has those of
    /// the dense one, less the smallest.
    pub fn build(&self) -> Model {
        let mut model = (self.entry.build)(self.entry.name, self.pruned_percent);
        model.name = self.to_string();
        model
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ir::{Shapes, specialize},
        tensor::{DType, TensorType},
    };

    fn build_small(name: &str) -> Model {
        build(name).unwrap()
    }

    #[test]
    fn parameter_counts_are_torchvisions() {
        for entry in list() {
            let model = build_small(entry.name);
            let parameters: usize = model
                .constants
                .iter()
                .filter(|(id, t)| {
                    let name = &model.values[id.index()];
                    t.ty().dtype == DType::F32
                        && ["weight", "bias", "token", "embedding", "table"]
                            .iter()
                            .any(|end| name.ends_with(end))
                })
                .map(|(_, t)| t.ty().len())
                .sum();
            assert_eq!(parameters as u64, entry.parameters, "{}", entry.name);
        }
    }

    #[test]
    fn batch_is_free_and_shapes_fold() {
        for entry in list() {
            let model = build_small(entry.name);
            for batch in [1, 2] {
                let shapes = Shapes::from([("input".to_owned(), vec![batch, 3, 224, 224])]);
                let s = specialize(&model, &shapes).unwrap();
                assert!(s.tail.is_none(), "{}", entry.name);
                assert_eq!(s.graph.verify().map_err(|e| e.to_string()), Ok(()));
                let output = s.graph.value(s.graph.outputs[0]);
                assert_eq!(output.name, "output");
                assert_eq!(output.ty, TensorType::f32([batch, 1000]));
                let has = |op| s.graph.nodes.iter().any(|n| n.op.op_type() == op);
                assert!(!has("Shape") && !has("Expand"), "{}", entry.name);
            }
        }
    }

    #[test]
    fn flops_are_as_listed() {
        for entry in list() {
            let graph = specialize(&build_small(entry.name), &Shapes::new()).unwrap().graph;
            let heavy = ["Conv", "Gemm", "MatMul"];
            let nodes = graph.nodes.iter().filter(|n| heavy.contains(&n.op.op_type()));
            let flops: u64 = nodes.map(|n| graph.with_operands(n, |x| n.op.flops(x))).sum();
            let gflops = flops as f64 / 1e9;
            assert!((gflops - entry.gflops).abs() < 0.01, "{}: {gflops}", entry.name);
        }
    }

    #[test]
    fn pruned_models_have_their_zeros() {
        let dense = build_small("mobilenet_v3_small");
        let pruned = build_small("zoo:mobilenet_v3_small@p90");
        assert_eq!(pruned.name, "mobilenet_v3_small@p90");
        let get = |model: &Model, name: &str| {
            let id = model.values.iter().position(|v| v == name).unwrap();
            model.constants.iter().find(|(c, _)| c.index() == id).unwrap().1.clone()
        };
        for name in ["features.4.block.0.0.weight", "classifier.0.weight"] {
            let (dense, pruned) = (get(&dense, name), get(&pruned, name));
            let (dense, pruned) =
                (dense.as_slice::<f32>().unwrap(), pruned.as_slice::<f32>().unwrap());
            let zeros = pruned.iter().filter(|v| **v == 0.0).count();
            assert_eq!(zeros, pruned.len() * 9 / 10);
            assert!(dense.iter().zip(pruned).all(|(d, p)| *p == 0.0 || d == p));
        }
    }

    #[test]
    fn bad_names_are_explained() {
        let text = |name| parse(name).unwrap_err().to_string();
        assert!(text("resnet").contains("resnet18, mobilenet_v2"));
        for bad in ["resnet18@90", "resnet18@p0", "resnet18@p100", "resnet18@"] {
            assert!(text(bad).contains("zoo:resnet18@p90"), "{bad}");
        }
        assert_eq!(parse("swin_t@p5").unwrap().to_string(), "swin_t@p5");
    }
}
