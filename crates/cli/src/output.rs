//! Where results go: text or one JSON document on stdout.

use std::io::Write;

use serde::Serialize;

use crate::error::{CliError, CliResult};

/// Output settings.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Print JSON.
    pub json: bool,
    /// No progress bars.
    pub quiet: bool,
}

impl Output {
    /// Prints the JSON document, or the text that `text` makes.
    ///
    /// # Errors
    /// When stdout cannot be written (a closed pipe is success: the reader has had enough).
    pub fn print(&self, document: &impl Serialize, text: impl FnOnce() -> String) -> CliResult {
        let text = if self.json {
            let mut json = serde_json::to_string_pretty(document).map_err(CliError::input)?;
            json.push('\n');
            json
        } else {
            text()
        };
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(CliError::input(format!("stdout: {e}")))
            }
            _ => Ok(()),
        }
    }
}

/// Writes a file, with an error that names it.
///
/// # Errors
/// When it cannot be written.
pub fn write_file(path: &std::path::Path, contents: impl AsRef<[u8]>) -> CliResult {
    std::fs::write(path, contents)
        .map_err(|e| CliError::input(format!("{}: cannot be written: {e}", path.display())))
}
