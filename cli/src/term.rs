//! What people read: results on standard output, progress and complaints on standard error, so that output can be piped.
//! Nobody may be listening any more; that is no reason to fail.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A line of the result.
pub(crate) fn say(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// A line about what happens on the way.
pub(crate) fn note(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Something that takes a while: a spinner on a terminal, plain lines elsewhere.
pub(crate) struct Step {
    spinner: Option<ProgressBar>,
    began: Instant,
}

impl Step {
    /// Shows that it has begun.
    pub(crate) fn begin(title: &'static str) -> Self {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}");
            let spinner = ProgressBar::new_spinner()
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
                .with_message(title);
            spinner.enable_steady_tick(Duration::from_millis(100));
            spinner
        });
        if spinner.is_none() {
            note(format_args!("{title} ..."));
        }
        Self { spinner, began: Instant::now() }
    }

    /// Takes lines from elsewhere. The spinner makes room, as what follows may be the output of another program.
    pub(crate) fn notes(&self) -> impl Fn(&str) + Send + 'static {
        let spinner = self.spinner.clone();
        move |line| {
            if let Some(spinner) = &spinner {
                spinner.finish_and_clear();
            }
            note(line);
        }
    }

    /// Shows what came of it.
    pub(crate) fn done(self, outcome: impl Display) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
        note(format_args!("✓ {outcome} ({:.1} s)", self.began.elapsed().as_secs_f64()));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}
