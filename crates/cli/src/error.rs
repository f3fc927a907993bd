//! Errors of the command line: one line and an exit code.

use std::fmt;

/// What went wrong, by exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A flag or argument: exit 2.
    Usage,
    /// The model: exit 3.
    Model,
    /// An input file, plan file or output folder: exit 4.
    Input,
    /// A processor: exit 5.
    Device,
    /// The command ran and its check failed (verify): exit 1.
    Failed,
}

impl Kind {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::Model => 3,
            Kind::Input => 4,
            Kind::Device => 5,
        }
    }
}

/// An error with the exit code it causes. Its text is one line that names the file, node or flag,
/// the cause and the remedy.
#[derive(Debug)]
pub struct CliError {
    /// Which exit code.
    pub kind: Kind,
    /// The line.
    pub text: String,
}

impl CliError {
    /// An error from its parts.
    pub fn new(kind: Kind, text: impl fmt::Display) -> CliError {
        CliError { kind, text: text.to_string().replace('\n', "; ") }
    }

    /// A usage error.
    pub fn usage(text: impl fmt::Display) -> CliError {
        CliError::new(Kind::Usage, text)
    }

    /// An input error.
    pub fn input(text: impl fmt::Display) -> CliError {
        CliError::new(Kind::Input, text)
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for CliError {}

/// Result of a command.
pub type CliResult<T = ()> = Result<T, CliError>;
