//! How far the reading of data is.

use std::{cell::RefCell, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use train::{Progress, Stage};

/// A bar for each file; nothing where stderr is no terminal.
pub(super) struct Reading {
    bar: ProgressBar,
    /// What is told of at the moment.
    of: RefCell<Option<(String, Stage)>>,
}

impl Reading {
    pub(super) fn new() -> Reading {
        let bar = ProgressBar::new(0);
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Reading { bar, of: RefCell::new(None) }
    }

    pub(super) fn show(&self, progress: Progress<'_>) {
        let Progress { path, stage, done, total } = progress;
        let name = path.file_name().unwrap_or(path.as_os_str()).display().to_string();
        let mut of = self.of.borrow_mut();
        if of.as_ref() != Some(&(name.clone(), stage)) {
            self.bar.set_message(format!("{} {name}", doing(stage)));
            self.bar.set_length(total);
            self.bar.reset_eta();
            *of = Some((name, stage));
        }
        self.bar.set_position(done);
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn doing(stage: Stage) -> &'static str {
    match stage {
        Stage::Digest => "reading",
        Stage::Wait => "waiting for another process with",
        Stage::Tokenize => "tokenizing",
        _ => "checking",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn each_stage_of_each_file_is_told() {
        let reading = Reading::new();
        for (stage, done, told) in [
            (Stage::Digest, 3, "reading b.jsonl"),
            (Stage::Tokenize, 5, "tokenizing b.jsonl"),
            (Stage::Check, 9, "checking b.jsonl"),
        ] {
            reading.show(Progress { path: Path::new("a/b.jsonl"), stage, done, total: 9 });
            assert_eq!((&*reading.bar.message(), reading.bar.position()), (told, done));
            assert_eq!(reading.bar.length(), Some(9));
        }
    }
}
