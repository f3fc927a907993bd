//! A sensor as those who look for sensors hand it over.

use super::{EnergyError, EnergyReader, EnergySource};

/// How a sensor counts beside others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A rail of a board whose rails together are all of it: before everything else.
    Whole,
    /// A part of the machine that no other part contains.
    Part,
    /// The package once more: where no other sensor has it.
    PackageAgain,
    /// The whole machine, slowly or by a firmware that often does not tell: where nothing else is.
    LastResort,
    /// Not at all, and why.
    Never(&'static str),
}

/// A sensor that was found.
pub(super) struct Found {
    pub source: EnergySource,
    pub reader: Result<Box<dyn EnergyReader>, EnergyError>,
    pub role: Role,
}

impl Found {
    pub fn new(
        source: EnergySource,
        reader: Result<Box<dyn EnergyReader>, EnergyError>,
        role: Role,
    ) -> Found {
        Found { source, reader, role }
    }
}
