//! The configuration of a training run: a typed TOML schema.
//!
//! Nothing is ignored. A key that no table has, a value of another type, a name that nothing bears,
//! a number out of range and a contradiction are problems, and all of a file's are told at once,
//! each with its line and what to do. Keys without effect (Adam's `betas` under `sgd`) are notes:
//! they let one file serve several optimizers. What is left out has the default that
//! [`TrainConfig::to_toml`] prints, and that text reads back as the same configuration.
//!
//! Paths are as written; who runs the configuration decides what they are relative to.

mod data;
mod eval;
mod limits;
mod mesh;
mod nearest;
mod optimizer;
mod problem;
mod report;
mod section;
mod size;
mod tables;
mod value;

use std::{fs, path::Path, path::PathBuf};

use serde::Serialize;
use toml::de::DeTable;

pub(crate) use data::is_npy;
pub use data::{BlendConfig, DataConfig, Format};
pub use eval::EvalConfig;
pub use mesh::{MeshConfig, MeshError};
pub use optimizer::{Optimizer, OptimizerConfig, Schedule};
pub use problem::{ConfigError, Problem};
pub use size::{ByteSize, NoByteSize};
pub use tables::{
    CheckpointConfig, GroupConfig, LogConfig, LoraConfig, LoraTargets, MemoryConfig, Offload,
    Precision, Recompute, StepsConfig,
};

use limits::Limits;
use report::{MISSING, Report};
use section::Section;

/// Everything that a run is told.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainConfig {
    /// A folder with `config.json`, the tokenizer, and weights unless they start at random.
    pub model: PathBuf,
    /// Where the weights come from.
    pub init: Init,
    /// Share of hidden states that are dropped while gradients are computed, at least 0 and below
    /// 1: of what the first layer reads, and of what attention and the MLP of each layer add, as
    /// GPT-2's `embd_pdrop` and `resid_pdrop`. Probabilities of attention are not dropped, nor is
    /// anything in evaluation and samples. `None` is no dropout, whatever the checkpoint says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// `[data]`.
    pub data: DataConfig,
    /// `[optimizer]`.
    pub optimizer: OptimizerConfig,
    /// `[train]`.
    pub train: StepsConfig,
    /// `[mesh]`.
    pub mesh: MeshConfig,
    /// `[memory]`.
    pub memory: MemoryConfig,
    /// `[checkpoint]`.
    pub checkpoint: CheckpointConfig,
    /// `[log]`.
    pub log: LogConfig,
    /// `[eval]`; there is no evaluation without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<EvalConfig>,
    /// `[lora]`; all weights are trained without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// `[[groups]]`: of those whose `regex` is found in a parameter's name, the first holds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupConfig>,
}

/// Where the weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// The model's folder.
    #[default]
    Pretrained,
    /// Random numbers from `train.seed`.
    Random,
}

impl TrainConfig {
    /// Reads a file; see [`parse`](Self::parse).
    ///
    /// # Errors
    /// As [`parse`](Self::parse), and a single problem if the file cannot be read.
    pub fn load(path: &Path) -> Result<(TrainConfig, Vec<Problem>), Box<ConfigError>> {
        let file = path.display().to_string();
        let fail = |text: String, at: usize, reason: String| {
            let problems = vec![Problem::new(&text, at..at, "", reason)];
            Err(Box::new(ConfigError { file: file.clone(), text, problems }))
        };
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) => return fail(String::new(), 0, format!("cannot be read: {error}")),
        };
        match String::from_utf8(bytes) {
            Ok(text) => TrainConfig::parse(&file, &text),
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
                fail(text, at, "is not UTF-8 from here on".to_owned())
            }
        }
    }

    /// Reads TOML; `file` is the name that errors carry. The notes tell of keys without effect.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the file.
    pub fn parse(file: &str, text: &str) -> Result<(TrainConfig, Vec<Problem>), Box<ConfigError>> {
        let (table, syntax) = DeTable::parse_recoverable(text);
        let report = Report::new(text);
        let config = read(Section::new(&report, "", 0..0, table.into_inner()));
        let (mut problems, notes) = report.finish();
        if !syntax.is_empty() {
            let errors = syntax.iter().map(|e| {
                Problem::new(text, e.span().unwrap_or(0..0), "", format!("syntax: {}", e.message()))
            });
            let errors: Vec<Problem> = errors.collect();
            // What was not understood may be what seems to be missing, or wrong.
            problems.retain(|p| p.reason != MISSING && errors.iter().all(|e| e.line != p.line));
            problems.extend(errors);
            problems.sort_by_key(|p| p.span.start);
        }
        match config {
            Some(config) if problems.is_empty() => Ok((config, notes)),
            _ => Err(Box::new(ConfigError {
                file: file.to_owned(),
                text: text.to_owned(),
                problems,
            })),
        }
    }

    /// The configuration as TOML, with every default filled in.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration is tables of plain values")
    }
}

/// `None` only if a problem was reported.
fn read(mut top: Section<'_>) -> Option<TrainConfig> {
    let model = top.text("model");
    if !top.has("model") {
        top.missing("model", "write model = \"FOLDER\", with config.json and the tokenizer");
    }
    let inits = [("pretrained", Init::Pretrained), ("random", Init::Random)];
    let init = top.choice("init", &inits).unwrap_or_default();
    let dropout = top.number("dropout", Limits::at_least(0.0).and_below(1.0));
    let data = data::read(top.table("data"));
    let train = tables::steps(top.table("train"));
    let steps = train.as_ref().map(|train| train.steps);
    let optimizer = optimizer::read(top.table("optimizer"), steps);
    let mesh = mesh::read(top.table("mesh"));
    let memory = tables::memory(top.table("memory"));
    let checkpoint = tables::checkpoint(top.table("checkpoint"), steps);
    let log = tables::log(top.table("log"));
    let eval = top.optional_table("eval").map(eval::eval);
    let lora = top.optional_table("lora").map(|table| tables::lora(table, init));
    let groups = top.tables("groups").into_iter().map(tables::group).collect::<Vec<_>>();
    top.finish();
    Some(TrainConfig {
        model: model?.into(),
        init,
        dropout,
        data: data?,
        optimizer,
        train: train?,
        mesh,
        memory,
        checkpoint,
        log,
        eval: eval.map_or(Some(None), |eval| eval.map(Some))?,
        lora: lora.map_or(Some(None), |lora| lora.map(Some))?,
        groups: groups.into_iter().collect::<Option<_>>()?,
    })
}

#[cfg(test)]
mod tests;
