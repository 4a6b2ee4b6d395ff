//! Long work shows that it is alive: a moving line on a terminal, plain lines elsewhere.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::say::line;

const SPINNER: &str = "{spinner} {prefix}  {wide_msg:.dim}";
const BAR: &str = "{spinner} {prefix}  [{bar:30}] {bytes} of {total_bytes}";

/// One step of the work.
#[derive(Debug)]
pub struct Step {
    bar: ProgressBar,
    start: Instant,
    plain: bool,
}

impl Step {
    /// Begins a step.
    pub fn begin(what: impl Into<Cow<'static, str>>) -> Self {
        let what = what.into();
        let bar = ProgressBar::new_spinner();
        let plain = bar.is_hidden();
        if plain {
            line(format_args!("{what} …"));
        }
        bar.set_prefix(what.into_owned());
        style(&bar, SPINNER);
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar, start: Instant::now(), plain }
    }

    /// What happens within the step just now.
    pub fn detail(&self, text: impl Into<Cow<'static, str>>) {
        self.bar.set_message(text);
    }

    /// How many bytes of how many are there.
    pub fn bytes(&self, done: u64, total: u64) {
        if self.bar.length() != Some(total) {
            style(&self.bar, BAR);
            self.bar.set_length(total);
        }
        self.bar.set_position(done.min(total));
    }

    /// Takes the step off the terminal, since something else is to be said.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// Ends the step with what came of it.
    pub fn end(self, result: &str) {
        self.clear();
        let seconds = self.start.elapsed().as_secs_f64();
        let mark = if self.plain { "  " } else { "✓ " };
        line(format_args!("{mark}{result} ({seconds:.1} s)"));
    }
}

impl Drop for Step {
    /// A step that failed leaves nothing behind on the terminal.
    fn drop(&mut self) {
        self.clear();
    }
}

fn style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸ "));
    }
}
