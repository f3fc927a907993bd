//! Tests of soft actor-critic.
