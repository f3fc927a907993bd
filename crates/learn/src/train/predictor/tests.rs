//! Tests of the training of predictors.
