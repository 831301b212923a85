//! `brolly opt`: one pass on a module in its text form.

use std::io::Read as _;

use ir::Target;

use crate::{
    args::Opt,
    context::Context,
    failure::{Failure, Problems, Result},
    output,
};

pub(crate) fn opt(args: &Opt, _: &Context) -> Result<()> {
    let name = args.file.display().to_string();
    let mut text = String::new();
    let read = if name == "-" {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(&args.file).map(|t| text = t)
    };
    read.map_err(|e| Failure::input(format!("{name}: cannot be read: {e}")))?;
    let mut module = ir::parse_module(&text).map_err(|e| {
        let problem = Problems::new(format!("{name}: {e}"), Vec::new());
        Failure::Input(problem.at(&name, &text, e.line, e.column).into())
    })?;
    ir::verify(&module).map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Failure::inputs(format!("{name}: {} problems", problems.len()), problems)
    })?;
    let kernels = driver::Codegen::new(Target::x86_64_v3());
    driver::run_pass(&args.pass, &mut module, &kernels).map_err(|e| match e {
        e if e.is_bug() => Failure::Bug(e.to_string()),
        e => Failure::inputs(format!("{name}: pass `{}` failed", args.pass), e.problems()),
    })?;
    output::print(&module.to_string())
}
