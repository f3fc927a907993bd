//! Progress bars on stderr, only where a person watches.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sparoa::Progress;

use crate::output::Output;

/// Makes bars, or hidden ones when nobody watches.
#[derive(Clone, Copy, Debug)]
pub struct Bars {
    visible: bool,
}

impl Bars {
    /// Visible on a terminal unless `--quiet`.
    pub fn new(out: &Output) -> Bars {
        Bars { visible: !out.quiet && std::io::stderr().is_terminal() }
    }

    fn target(self) -> ProgressDrawTarget {
        if self.visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
    }

    /// A spinner for work of unknown length.
    pub fn spinner(self, message: &str) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(None, self.target());
        bar.set_style(
            ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("valid template"),
        );
        bar.set_message(message.to_owned());
        bar.enable_steady_tick(std::time::Duration::from_millis(120));
        bar
    }

    /// A bar of `len` steps.
    pub fn bar(self, len: u64, message: &str) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(len), self.target());
        bar.set_style(
            ProgressStyle::with_template("{msg:28} {wide_bar} {pos}/{len} {eta}")
                .expect("valid template"),
        );
        bar.set_message(message.to_owned());
        bar
    }

    /// A callback that shows how a session is being built.
    pub fn build(self, model: &str) -> impl FnMut(Progress) + Send + 'static {
        let bar = self.spinner(model);
        let model = model.to_owned();
        move |progress| {
            let counted =
                |what: &str, done: usize, total: usize| format!("{model}: {what} {done}/{total}");
            bar.set_message(match progress {
                Progress::Loading => format!("{model}: loading"),
                Progress::Specializing => format!("{model}: resolving shapes"),
                Progress::Optimizing => format!("{model}: optimising"),
                Progress::Analyzing => format!("{model}: analysing"),
                Progress::Measuring { done, total } => counted("measuring operators", done, total),
                Progress::Scheduling => format!("{model}: scheduling"),
                Progress::Preparing { done, total } => counted("preparing plans", done, total),
                Progress::Dividing => format!("{model}: measuring how to divide"),
                Progress::Guarding { done, total } => counted("measuring finalists", done, total),
            });
        }
    }
}
