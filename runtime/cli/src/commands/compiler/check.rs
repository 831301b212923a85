//! `brolly check`: everything that would stop a compile.

use serde_json::json;

use super::options::Prepared;
use crate::{
    args::Check,
    context::Context,
    failure::{Failure, Result},
    inspect::{Region, counts, fusion_table},
    output,
};

pub(crate) fn check(args: &Check, cx: &Context) -> Result<()> {
    let model = &args.model;
    let Prepared { options, problems } = Prepared::new(model, &args.options, cx)?;
    let fusions = match driver::check(model, &options) {
        Ok(fusions) if problems.is_empty() => fusions,
        result => {
            let failure = match result {
                Err(error) => super::failure(model, &error, problems),
                Ok(_) => Failure::inputs(
                    format!("{}: {} problems", model.display(), problems.len()),
                    problems,
                ),
            };
            if let (true, Failure::Input(found)) = (args.json, &failure) {
                output::json(&json!({ "problems": found.each() }))?;
            }
            return Err(failure);
        }
    };
    let regions = serde_json::to_value(&fusions)
        .and_then(serde_json::from_value::<Vec<Region>>)
        .map_err(|e| Failure::Bug(e.to_string()))?;
    let counts = counts(&regions);
    if args.json {
        return output::json(&json!({ "problems": [], "fusions": counts }));
    }
    output::print(&format!("{}: compiles\n\n{}", model.display(), fusion_table(&counts)))
}
