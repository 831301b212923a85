//! A compile's progress: a bar on a terminal, and spans in the timeline.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use driver::Progress;
use exec::Trace;
use indicatif::{ProgressBar, ProgressStyle};

use crate::context::Context;

/// Shows stages as they come, and clears the bar in the end.
///
/// Nothing is shown where stderr is not a terminal.
pub(super) struct Shown<'a> {
    bar: ProgressBar,
    trace: Option<&'a Trace>,
    stage: Mutex<Option<(String, Instant)>>,
}

impl<'a> Shown<'a> {
    pub(super) fn new(model: &Path, cx: &'a Context) -> Shown<'a> {
        let bar = ProgressBar::new_spinner();
        bar.set_prefix(model.file_name().unwrap_or(model.as_os_str()).display().to_string());
        Shown { bar, trace: cx.trace(), stage: Mutex::new(None) }
    }

    fn end_stage(&self, next: Option<(String, Instant)>) {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some((name, start)), Some(trace)) = (stage.take(), self.trace) {
            trace.record("compile", &name, start);
        }
        *stage = next;
    }
}

impl Progress for Shown<'_> {
    fn stage(&self, name: &str, steps: u64) {
        self.end_stage(Some((name.to_owned(), Instant::now())));
        let template = match steps {
            0 => "{spinner} compiling {prefix}: {msg}",
            _ => "{spinner} compiling {prefix}: {msg} {wide_bar} {pos}/{len}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        self.bar.set_length(steps.max(1));
        self.bar.set_position(0);
        self.bar.set_message(name.to_owned());
        self.bar.enable_steady_tick(Duration::from_millis(100));
    }

    fn advance(&self, steps: u64) {
        self.bar.inc(steps);
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.end_stage(None);
        self.bar.finish_and_clear();
    }
}
