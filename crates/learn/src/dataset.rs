//! What the predictor learns from: sequences of operators with wanted thresholds.

use crate::predictor::OUTPUTS;

/// One network: T operators in the order of execution.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sequence {
    /// [T, F] row-major, finite.
    pub features: Vec<f32>,
    /// [T, 2] row-major, each in [0, 1].
    pub targets: Vec<f32>,
    /// [T, 2] row-major: how much each target counts, at least 0; 0 where there is none.
    pub weights: Vec<f32>,
}

/// Sequences of one number of features.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dataset {
    /// Features per operator.
    pub features: usize,
    /// The sequences.
    pub sequences: Vec<Sequence>,
}

/// Why a data set was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// There is nothing to learn from.
    #[error("the data set has no target that counts; give it sequences with weights above 0")]
    Empty,
    /// The training and validation sets differ in width, or a sequence's lists disagree.
    #[error(
        "sequence {sequence}: {what} has {found} values, expected {expected}; build every sequence with the same features"
    )]
    Length {
        /// Index of the sequence.
        sequence: usize,
        /// The list that is wrong.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length that fits.
        expected: usize,
    },
    /// A value is not finite or out of range.
    #[error(
        "sequence {sequence}: value {index} of {what} is {value}; features must be finite, targets in [0, 1], weights finite and not negative"
    )]
    Value {
        /// Index of the sequence.
        sequence: usize,
        /// The list that is wrong.
        what: &'static str,
        /// Index of the value.
        index: usize,
        /// The value.
        value: f32,
    },
}

impl Sequence {
    /// Operators.
    pub fn len(&self) -> usize {
        self.targets.len() / OUTPUTS
    }

    /// Whether it has no operator.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }
}

impl Dataset {
    /// That all lengths agree and all values are in range.
    ///
    /// # Errors
    /// The first [`DatasetError`].
    pub fn check(&self) -> Result<(), DatasetError> {
        let mut total = 0.0;
        for (sequence, s) in self.sequences.iter().enumerate() {
            let lists = [
                ("features", &s.features, s.len() * self.features),
                ("targets", &s.targets, s.len() * OUTPUTS),
                ("weights", &s.weights, s.len() * OUTPUTS),
            ];
            for (what, list, expected) in lists {
                let found = list.len();
                if found != expected {
                    return Err(DatasetError::Length { sequence, what, found, expected });
                }
                let allowed = |v: f32| match what {
                    "features" => v.is_finite(),
                    "targets" => (0.0..=1.0).contains(&v),
                    _ => v.is_finite() && v >= 0.0,
                };
                if let Some(index) = list.iter().position(|v| !allowed(*v)) {
                    let value = list[index];
                    return Err(DatasetError::Value { sequence, what, index, value });
                }
            }
            total += s.weights.iter().map(|w| f64::from(*w)).sum::<f64>();
        }
        if self.features == 0 || total == 0.0 {
            return Err(DatasetError::Empty);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_set_is_checked() {
        let good = Sequence {
            features: vec![1.0; 6],
            targets: vec![0.5; 4],
            weights: vec![1.0, 0.0, 1.0, 1.0],
        };
        let set = |s: Sequence| Dataset { features: 3, sequences: vec![good.clone(), s] };
        assert_eq!(set(good.clone()).check(), Ok(()));
        let short = Sequence { features: vec![1.0; 5], ..good.clone() };
        let error = set(short).check().unwrap_err();
        assert!(error.to_string().starts_with("sequence 1: features has 5 values, expected 6"));
        let high = Sequence { targets: vec![0.5, 0.5, 1.5, 0.5], ..good.clone() };
        let error = set(high).check().unwrap_err();
        assert!(matches!(error, DatasetError::Value { what: "targets", index: 2, .. }));
        let unweighted = Sequence { weights: vec![0.0; 4], ..good.clone() };
        let empty = Dataset { features: 3, sequences: vec![unweighted] };
        assert_eq!(empty.check(), Err(DatasetError::Empty));
    }
}
