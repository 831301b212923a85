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
    let library = match launches_by_library(&artifact) {
        0 => String::new(),
        count => format!("\n{count} launches are products that cuBLASLt computes\n"),
    };
    output::print(&format!(
        "{}: {}\n\n{}\n{}{tuning}{library}",
        document.artifact,
        table::bytes(document.bytes),
        document.summary.table(),
        fusion_table(&document.fusions)
    ))
}

/// Launches, of all entries, of what a library computes.
fn launches_by_library(artifact: &Artifact) -> usize {
    let programs = &artifact.manifest().programs;
    let launches = programs.iter().flat_map(|p| p.launches.iter().map(move |l| (p, l.kernel)));
    let computes = |code: &ir::CudaCode| code.library.is_some();
    let kernels = launches.filter_map(|(p, kernel)| p.kernels.get(kernel as usize));
    kernels.filter(|kernel| kernel.cuda.iter().any(computes)).count()
}

fn document<'a>(artifact: &'a Artifact, report: &'a Report, cx: &Context) -> Result<Document<'a>> {
    let bytes = artifact.file().metadata().map_or(0, |m| m.len());
    let name = artifact.path().display().to_string();
    Document::new(name, bytes, artifact.manifest(), report, cx.threads().get())
}
