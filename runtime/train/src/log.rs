//! Where the figures of a run go: lines of JSON, and TensorBoard.

mod tensorboard;

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::TrainError;

use tensorboard::EventFile;

/// A line of figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Line {
    /// The step, from 1 on.
    pub step: u64,
    /// Mean cross-entropy over all targets.
    pub loss: f64,
    /// Norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// The learning rate.
    pub lr: f64,
    /// Targets of all ranks a second: what pads rows or is not learned does not count.
    pub tokens_per_s: f64,
    /// Touched memory of this rank.
    pub peak_bytes: u64,
    /// Mean loss on the evaluation's data, where it was computed after this step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_loss: Option<f64>,
    /// The factor of the loss in this step, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f32>,
    /// Whether nothing was updated, for a gradient was not finite.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_skipped: bool,
}

/// A text from the weights as they were after a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SampleLine {
    /// What it goes on with.
    pub prompt: String,
    /// What was generated.
    pub text: String,
}

/// Files that figures are added to. Each line is whole on disk's way before the next step begins.
#[derive(Debug)]
pub struct Log {
    jsonl: Option<(PathBuf, File)>,
    events: Option<EventFile>,
}

impl Log {
    /// Opens the files; what they hold stays, but for a last line that was not written to its end:
    /// its step is taken again.
    ///
    /// # Errors
    /// [`TrainError::File`] if one cannot be written.
    pub fn open(jsonl: Option<&Path>, tensorboard: Option<&Path>) -> Result<Log, TrainError> {
        let open = |path: &Path| {
            make_parent(path)?;
            let file = open_lines(path).map_err(|e| TrainError::file(path, e))?;
            Ok::<_, TrainError>((path.to_owned(), file))
        };
        let jsonl = jsonl.map(open).transpose()?;
        let events = tensorboard.map(EventFile::create).transpose()?;
        Ok(Log { jsonl, events })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// [`TrainError::File`] if it cannot be written, as on a full disk.
    pub fn write(&mut self, line: &Line) -> Result<(), TrainError> {
        self.add(line)?;
        if let Some(events) = &mut self.events {
            let scalars = [
                ("train/loss", Some(line.loss)),
                ("train/grad_norm", Some(line.grad_norm)),
                ("train/lr", Some(line.lr)),
                ("train/tokens_per_s", Some(line.tokens_per_s)),
                ("eval/loss", line.eval_loss),
                ("train/loss_scale", line.loss_scale.map(f64::from)),
            ];
            #[allow(clippy::cast_possible_truncation, reason = "the format has f32")]
            let scalars = scalars.iter().filter_map(|(tag, x)| Some((*tag, (*x)? as f32)));
            events.scalars(line.step, &scalars.collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Adds a line with the texts that were generated after a step.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_samples(&mut self, step: u64, samples: &[SampleLine]) -> Result<(), TrainError> {
        #[derive(Serialize)]
        struct Samples<'a> {
            step: u64,
            samples: &'a [SampleLine],
        }
        self.add(&Samples { step, samples })
    }

    /// Adds a line of JSON, in one write.
    fn add(&mut self, line: &impl Serialize) -> Result<(), TrainError> {
        let Some((path, file)) = &mut self.jsonl else { return Ok(()) };
        let mut text = serde_json::to_string(line).map_err(|e| TrainError::file(path, e))?;
        text.push('\n');
        file.write_all(text.as_bytes()).map_err(|e| TrainError::file(path, e))
    }
}

/// Opens a file to add lines to it, and cuts what stands behind its last whole line.
fn open_lines(path: &Path) -> std::io::Result<File> {
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
    // Where to is a device, there is nothing to cut.
    let mut end = if file.metadata()?.is_file() { file.seek(SeekFrom::End(0))? } else { 0 };
    let torn_from = end;
    let mut block = [0; 4096];
    while end > 0 {
        let bytes = end.min(block.len() as u64);
        let block = &mut block[..usize::try_from(bytes).unwrap_or(usize::MAX)];
        file.seek(SeekFrom::Start(end - bytes))?;
        file.read_exact(block)?;
        match block.iter().rposition(|byte| *byte == b'\n') {
            Some(at) => {
                end = end - bytes + at as u64 + 1;
                break;
            }
            None => end -= bytes,
        }
    }
    if end < torn_from {
        file.set_len(end)?;
    }
    Ok(file)
}

fn make_parent(path: &Path) -> Result<(), TrainError> {
    match path.parent() {
        Some(dir) => std::fs::create_dir_all(dir).map_err(|e| TrainError::file(dir, e)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_added_and_read_back() {
        let dir = std::env::temp_dir().join(format!("brolly-log-{}", std::process::id()));
        let path = dir.join("deep/metrics.jsonl");
        let line = Line {
            step: 1,
            loss: 0.1 + 0.2,
            grad_norm: 1.5,
            lr: 3e-4,
            tokens_per_s: 10.0,
            peak_bytes: 7,
            eval_loss: None,
            loss_scale: None,
            is_skipped: false,
        };
        for step in 1..=2 {
            let mut log = Log::open(Some(&path), None).unwrap();
            log.write(&Line { step, ..line }).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1]["step"], 2);
        assert_eq!(lines[0]["loss"], 0.1 + 0.2);
        assert!(lines[0].get("eval_loss").is_none());

        // A process that was killed while it wrote.
        for torn in [r#"{"step":3,"lo"#.to_owned(), " ".repeat(9000)] {
            std::fs::write(&path, text.clone() + &torn).unwrap();
            Log::open(Some(&path), None).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        std::fs::write(&path, "torn").unwrap();
        Log::open(Some(&path), None).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
