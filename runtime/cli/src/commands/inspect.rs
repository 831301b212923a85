//! `brolly inspect`: what an artifact holds.

use ir::artifact::Artifact;

use crate::{
    args::Inspect,
    context::Context,
    failure::{Failure, Result},
    inspect::{Document, Report, fusion_table, page},
    output, source, table,
};

pub(crate) fn inspect(args: &Inspect, cx: &Context) -> Result<()> {
    let artifact = source::open_foreign(&args.source, cx)?;
    let report: Report = artifact.report().map_err(Failure::input)?;
    let document = document(&artifact, &report, cx)?;
    if let Some(path) = &args.html {
        return std::fs::write(path, page(&document)).map_err(|e| {
            Failure::input(format!("--html {}: cannot be written: {e}", path.display()))
        });
    }
    if args.json {
        return output::json(&document);
    }
    let tuning = match document.tuning.len() {
        0 => String::new(),
        count => format!("\n{count} schedules from a table of `brolly tune`\n"),
    };
    output::print(&format!(
        "{}: {}\n\n{}\n{}{tuning}",
        document.artifact,
        table::bytes(document.bytes),
        document.summary.table(),
        fusion_table(&document.fusions)
    ))
}

fn document<'a>(artifact: &'a Artifact, report: &'a Report, cx: &Context) -> Result<Document<'a>> {
    let bytes = artifact.file().metadata().map_or(0, |m| m.len());
    let name = artifact.path().display().to_string();
    Document::new(name, bytes, artifact.manifest(), report, cx.threads().get())
}
