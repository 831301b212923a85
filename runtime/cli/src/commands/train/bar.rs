//! How far a run is.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use train::Line;

use crate::output;

/// A bar with loss, speed and the time that is left; nothing where stderr is no terminal, or for
/// ranks that do not show one.
pub(super) struct Bar(ProgressBar);

impl Bar {
    pub(super) fn new(is_shown: bool, steps: u64, done: u64) -> Bar {
        if !is_shown {
            return Bar(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(steps).with_position(done);
        let template = "training {wide_bar} {pos}/{len} {msg} {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Bar(bar)
    }

    /// Tells something that stays, above the bar.
    pub(super) fn above(&self, text: &str) {
        self.0.suspend(|| output::tell(text));
    }

    pub(super) fn show(&self, line: &Line) {
        self.0.set_position(line.step);
        let eval = line.eval_loss.map_or_else(String::new, |loss| format!(" (eval {loss:.4})"));
        let Line { loss, tokens_per_s, .. } = line;
        self.0.set_message(format!("loss {loss:.4}{eval}, {tokens_per_s:.0} tokens/s,"));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
