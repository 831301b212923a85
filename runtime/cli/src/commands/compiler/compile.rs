//! `brolly compile`: a model to an artifact, and what became of it.

use std::path::{Path, PathBuf};

use driver::Compiled;
use ir::artifact::Artifact;
use serde::Serialize;

use super::{Shown, options::Prepared, training::training_options};
use crate::{
    args::Compile,
    commands::configuration,
    context::Context,
    failure::{Failure, Result},
    inspect::{FusionCount, Report, Summary, counts, fusion_table},
    output,
    table::{self, Table},
};

#[derive(Serialize)]
struct Document<'a> {
    artifact: String,
    bytes: u64,
    seconds: f64,
    stages: &'a [driver::StageTime],
    fusions: Vec<FusionCount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_library: Option<&'a str>,
    #[serde(flatten)]
    summary: Summary,
}

pub(crate) fn compile(args: &Compile, cx: &Context) -> Result<()> {
    let given = &args.model;
    let config = match given.extension().is_some_and(|e| e.eq_ignore_ascii_case("toml")) {
        true => Some(configuration(given)?),
        false => None,
    };
    let model = config.as_ref().map_or(given, |config| &config.model);
    check_output(model, &args.output)?;
    let options = match &config {
        Some(config) => training_options(config, &args.options, cx)?,
        None => Prepared::new(model, &args.options, cx)?.checked(model)?,
    };
    let progress = Shown::new(model, cx);
    let compiled = driver::compile(model, &args.output, &options, &progress)
        .map_err(|e| super::failure(model, &e, Vec::new()))?;
    drop(progress);
    if let Some(library) = &compiled.library {
        eprintln!("note: {library}");
    }
    let artifact = Artifact::open_foreign(&args.output).map_err(Failure::input)?;
    let report: Report = artifact.report().map_err(Failure::input)?;
    let document = Document {
        artifact: args.output.display().to_string(),
        bytes: artifact.file().metadata().map_or(0, |m| m.len()),
        seconds: compiled.stages.iter().map(|s| s.seconds).sum(),
        stages: &compiled.stages,
        fusions: counts(&report.fusions),
        gpu_library: compiled.library.as_deref(),
        summary: Summary::of(artifact.manifest(), cx.threads().get())?,
    };
    if args.json {
        return output::json(&document);
    }
    output::print(&render(&compiled, &document))
}

/// Refuses to write over the model, or over what is no file.
fn check_output(model: &Path, output: &Path) -> Result<()> {
    let refuse = |why: &str| Failure::input(format!("--output {}: {why}", output.display()));
    // What is not there, or cannot be looked at, is left to whoever writes it.
    let Ok(real) = output.canonicalize() else { return Ok(()) };
    if real.is_dir() {
        return Err(refuse("is a folder; name the file to write"));
    }
    if !real.is_file() {
        return Err(refuse("is no regular file, and artifacts are mapped from files"));
    }
    let is_output = |file: &PathBuf| file.canonicalize().is_ok_and(|file| file == real);
    if driver::model_files(model).iter().any(is_output) {
        return Err(refuse("is a file of the model, and would be overwritten"));
    }
    Ok(())
}

fn render(compiled: &Compiled, document: &Document<'_>) -> String {
    let mut stages = Table::new(&["stage", ">time"]);
    for stage in &compiled.stages {
        stages.row([stage.stage.clone(), table::seconds(stage.seconds)]);
    }
    stages.row(["total".into(), table::seconds(document.seconds)]);
    format!(
        "{}: {}\n\n{}\n{}\n{}",
        document.artifact,
        table::bytes(document.bytes),
        stages.render(),
        fusion_table(&document.fusions),
        document.summary.table()
    )
}
