//! The threshold predictor at run time: features of a sequence of operators in, two thresholds per
//! operator out.
//!
//! The paper names a Transformer encoder and an LSTM; sizes and wiring are ours. Features are
//! normalised with the mean and deviation of the training data, embedded, given sinusoidal positions
//! (Vaswani et al. 2017, arXiv 1706.03762) and passed through pre-norm encoder layers, then through
//! a bidirectional LSTM (Hochreiter and Schmidhuber 1997) and a linear head with a sigmoid.
//!
//! Attention stays inside windows of `window` operators, so that time grows linearly with the length
//! of the sequence; every second layer shifts its windows by half, as Swin does in images (Liu et
//! al. 2021, arXiv 2103.14030). The LSTM carries what is farther away. Networks shorter than half a
//! window are seen whole.

mod encoder;
mod lstm;
mod position;

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use sparoa_kernels::{Activation, Epilogue, Pool};

use crate::dense::Dense;
use crate::weights::{Weights, WeightsError};
use encoder::{EncoderLayer, Norm};
use lstm::BiLstm;
pub use position::position_encoding;

/// The kind of its weight files.
pub const KIND: &str = "predictor";
/// Thresholds per operator.
pub const OUTPUTS: usize = 2;
/// Normalised features are cut off beyond this many deviations: an operator unlike any in training
/// must not saturate the net.
pub const FEATURE_LIMIT: f32 = 8.0;
/// Added to the variance in layer norms.
pub(crate) const NORM_EPS: f32 = 1e-5;

/// Which parts a predictor has: the whole, and what it is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// A linear function of an operator's own features, then the sigmoid.
    Linear,
    /// The LSTM on embedded features.
    Lstm,
    /// The encoder alone.
    Transformer,
    /// The encoder, then the LSTM.
    TransformerLstm,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Architecture; 4] = [
        Architecture::Linear,
        Architecture::Lstm,
        Architecture::Transformer,
        Architecture::TransformerLstm,
    ];

    /// Its name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Linear => "linear",
            Architecture::Lstm => "lstm",
            Architecture::Transformer => "transformer",
            Architecture::TransformerLstm => "transformer+lstm",
        }
    }

    /// Whether it has encoder layers.
    pub fn has_encoder(self) -> bool {
        matches!(self, Architecture::Transformer | Architecture::TransformerLstm)
    }

    /// Whether it has an LSTM.
    pub fn has_lstm(self) -> bool {
        matches!(self, Architecture::Lstm | Architecture::TransformerLstm)
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Architecture {
    type Err = String;

    fn from_str(name: &str) -> Result<Architecture, String> {
        let found = Architecture::ALL.into_iter().find(|a| a.name() == name);
        found.ok_or_else(|| {
            let names = Architecture::ALL.map(Architecture::name).join("`, `");
            format!("unknown architecture `{name}`: one of `{names}`")
        })
    }
}

/// Why features were refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FeaturesError {
    /// The slice is not rows of the net's width.
    #[error(
        "{len} feature values are not rows of {expected}; give the features the predictor was trained on"
    )]
    Length {
        /// Values given.
        len: usize,
        /// Features per operator.
        expected: usize,
    },
    /// A feature is a NaN or an infinity.
    #[error("feature {feature} of operator {operator} is not finite; check its profile")]
    NonFinite {
        /// The operator's index.
        operator: usize,
        /// The feature's index.
        feature: usize,
    },
}

/// The predictor net.
pub struct Predictor {
    weights: Weights,
    architecture: Architecture,
    mean: Vec<f32>,
    deviation: Vec<f32>,
    embed: Option<Dense>,
    layers: Vec<EncoderLayer>,
    final_norm: Option<Norm>,
    window: usize,
    lstm: Option<BiLstm>,
    head: Dense,
    pool: Pool,
}

impl Predictor {
    /// Reads a weight file.
    ///
    /// # Errors
    /// Every [`WeightsError`] of reading; each names the file.
    pub fn load(path: &Path) -> Result<Predictor, WeightsError> {
        Predictor::from_weights(Weights::load(path)?)
    }

    /// Reads embedded weights; `name` stands for the file in errors.
    ///
    /// # Errors
    /// As [`Predictor::load`].
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Predictor, WeightsError> {
        Predictor::from_weights(Weights::from_bytes(name, bytes)?)
    }

    /// Builds the net from weights in memory.
    ///
    /// # Errors
    /// As [`Predictor::load`].
    pub fn from_weights(weights: Weights) -> Result<Predictor, WeightsError> {
        let w = &weights;
        w.expect("kind", KIND)?;
        let name = w.note("architecture");
        let architecture: Architecture = name
            .unwrap_or_default()
            .parse()
            .map_err(|e: String| w.setting("architecture", name, e))?;
        let features = w.array("input.mean")?.data.len();
        let mean = w.tensor("input.mean", &[features])?.to_vec();
        let deviation = w.tensor("input.deviation", &[features])?.to_vec();
        if features == 0 || deviation.iter().any(|d| *d <= 0.0) {
            let cause = "tensor `input.deviation` has values that are not above zero".to_owned();
            return Err(WeightsError::Corrupt { file: w.source().to_owned(), cause });
        }
        let (mut embed, mut width) = (None, features);
        if architecture != Architecture::Linear {
            width = w.matrix_shape("embed.weight")?.1;
            embed = Some(Dense::from_weights(w, "embed", features, width)?);
        }
        let (mut layers, mut final_norm, mut window) = (Vec::new(), None, 0);
        if architecture.has_encoder() {
            window = w.number("window", 2..=4096)?;
            let heads = w.number("heads", 1..=64)?;
            if width % heads != 0 {
                return Err(w.setting("heads", w.note("heads"), format!("a divisor of {width}")));
            }
            for i in 0..w.number("layers", 1..=16)? {
                layers.push(EncoderLayer::from_weights(w, &format!("layers.{i}"), width, heads)?);
            }
            final_norm = Some(Norm::from_weights(w, "final_norm", width)?);
        }
        let mut lstm = None;
        if architecture.has_lstm() {
            let net = BiLstm::from_weights(w, "lstm", width)?;
            width = net.outputs();
            lstm = Some(net);
        }
        let head = Dense::from_weights(w, "head", width, OUTPUTS)?;
        let pool = Pool::single();
        Ok(Predictor {
            architecture,
            mean,
            deviation,
            embed,
            layers,
            final_norm,
            window,
            lstm,
            head,
            pool,
            weights,
        })
    }

    /// Features per operator.
    pub fn features(&self) -> usize {
        self.mean.len()
    }

    /// Which parts it has.
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// The weights it was built from, with the trainer's notes.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The thresholds of a sequence, [T, 2] row-major, each in [0, 1], for its features, [T, F]
    /// row-major in the order of execution. An empty sequence gives an empty result.
    ///
    /// # Errors
    /// [`FeaturesError`].
    pub fn predict(&self, features: &[f32]) -> Result<Vec<f32>, FeaturesError> {
        let width = self.features();
        if !features.len().is_multiple_of(width) {
            return Err(FeaturesError::Length { len: features.len(), expected: width });
        }
        if let Some(at) = features.iter().position(|v| !v.is_finite()) {
            return Err(FeaturesError::NonFinite { operator: at / width, feature: at % width });
        }
        let rows = features.len() / width;
        if rows == 0 {
            return Ok(Vec::new());
        }
        let mut x = self.normalised(features);
        if let Some(embed) = &self.embed {
            let mut y = vec![0.0; rows * embed.outputs()];
            embed.apply(rows, &x, &Epilogue::NONE, &mut y, &self.pool);
            x = y;
        }
        if let Some(norm) = &self.final_norm {
            let width = x.len() / rows;
            for (x, p) in x.iter_mut().zip(position_encoding(rows, width)) {
                *x += p;
            }
            for (i, layer) in self.layers.iter().enumerate() {
                layer.apply(rows, windows(rows, self.window, i), &mut x, &self.pool);
            }
            let mut y = vec![0.0; x.len()];
            norm.apply(rows, &x, &mut y, &self.pool);
            x = y;
        }
        if let Some(lstm) = &self.lstm {
            x = lstm.apply(rows, &x, &self.pool);
        }
        let mut y = vec![0.0; rows * OUTPUTS];
        let sigmoid = Epilogue::activation(Activation::Sigmoid);
        self.head.apply(rows, &x, &sigmoid, &mut y, &self.pool);
        Ok(y)
    }

    fn normalised(&self, features: &[f32]) -> Vec<f32> {
        let mut x = Vec::with_capacity(features.len());
        for row in features.chunks_exact(self.mean.len()) {
            let values = row.iter().zip(&self.mean).zip(&self.deviation);
            x.extend(values.map(|((v, m), d)| {
                // Features near the largest float overflow here and are cut off.
                ((v - m) / d).clamp(-FEATURE_LIMIT, FEATURE_LIMIT)
            }));
        }
        x
    }
}

/// The attention windows of a layer over `rows` operators: odd layers start half a window earlier.
fn windows(rows: usize, window: usize, layer: usize) -> impl Iterator<Item = Range<usize>> {
    let shift = window_shift(window, layer);
    let count = (rows + shift).div_ceil(window);
    (0..count)
        .map(move |i| (i * window).saturating_sub(shift)..((i + 1) * window - shift).min(rows))
        .filter(|range| !range.is_empty())
}

/// By how many operators a layer's windows are shifted.
pub(crate) fn window_shift(window: usize, layer: usize) -> usize {
    if layer % 2 == 1 { window / 2 } else { 0 }
}

#[cfg(test)]
mod tests;
