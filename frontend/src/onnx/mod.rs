//! ONNX files: opsets 7 to [`NEWEST_OPSET`], as exporters write them, into a graph with entry
//! `main`.
//!
//! The importer is generic: a node whose operator stands in the table of [`ir::OPS`] with an ONNX
//! name imports by that entry; irregular ones have a short function each in `ops/`. Its parts, in
//! the order in which they run:
//!
//! - `proto` reads the file and checks what it declares, `inline` expands model-local functions;
//! - `symbols` names symbolic sizes and bounds them, `tensor` and `external` decode tensors,
//!   `literals` decides which become weights, constants or index grids;
//! - `importer` walks the nodes, `fold` resolves shape arithmetic to sizes on the way, `index`
//!   knows what index tensors hold, so that gathers by arithmetic become views.
//!
//! Shape arithmetic leaves nothing behind: what `Shape`, `Gather` and `Concat` compute for a
//! `Reshape` becomes the symbolic shape of a `reshape`. Sizes that cannot be decided equal are an
//! error. Subgraphs (`If`, `Loop`, `Scan`), strings, sequences and quantised operators are not
//! imported yet. Every problem of a file is reported at once.
//!
//! # Bounds
//! A size named in the file (`dim_param`) is a symbol of that name, with characters outside
//! `[A-Za-z0-9_]` replaced by `_`; a nameless one is called after its input and axis, `ids_dim1`.
//! Its bounds are those given in [`crate::ImportOptions::bounds`], or else 1 to
//! [`DEFAULT_BOUND`], lowered to what tables of a fixed length (position embeddings) allow. Equal
//! bounds make a size constant.

mod attributes;
mod cx;
mod external;
mod fold;
mod importer;
mod index;
mod inline;
mod literals;
mod ops;
mod proto;
mod symbols;
mod tensor;

use std::path::Path;

use ir::{ModelInfo, ModelKind, Module};

use crate::{FrontendError, ImportOptions, Imported, fit};

pub use proto::{NEWEST_OPSET, OLDEST_OPSET};
pub use symbols::DEFAULT_BOUND;

/// Imports an `.onnx` file.
///
/// # Errors
/// Every problem found: a file that is not ONNX, tensors that do not fit their declarations,
/// operators, attributes and opsets that are not supported, sizes that cannot be decided equal.
pub fn import(path: &Path, options: &ImportOptions) -> Result<Imported, Vec<FrontendError>> {
    let mut model = proto::read(path)?;
    let opset = proto::opset(path, &model)?;
    let mut graph = inline::expand(path, &mut model, opset)?;
    let mut errors = Vec::new();
    let literals = literals::collect(path, &mut graph, options.dtype, &mut errors);
    let mut sizes = symbols::declare(path, &graph, &literals, options, &mut errors);

    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let mut module = Module::new(&stem);
    module.symbols = sizes.symbols.clone();
    for (name, weight) in &literals.weights.0 {
        module.weight(name, weight.ty());
    }
    let main = importer::build(path, &module, &graph, opset, &literals, &mut sizes, &mut errors);
    if !errors.is_empty() {
        return Err(errors);
    }
    let used: std::collections::BTreeSet<&str> = main
        .node_ids()
        .into_iter()
        .filter(|n| main.node(*n).op.name() == "weight")
        .map(|n| main.node(n).attrs.str("name"))
        .collect();
    module.weights.retain(|name, _| used.contains(&**name));
    module.symbols = sizes.symbols;
    let parameters = module.weights.values().filter_map(|ty| ty.elements().as_const());
    let info = ModelInfo {
        architecture: graph.name.clone(),
        kind: ModelKind::Graph,
        vocab_size: 0,
        hidden_size: 0,
        max_seq_len: 0,
        parameters: parameters.filter_map(|n| u64::try_from(n).ok()).sum(),
    };
    module.add(main);
    let oversized = fit::oversized(&module);
    if !oversized.is_empty() {
        return Err(oversized.into_iter().map(|why| FrontendError::file(path, why)).collect());
    }
    module.entries.push("main".into());
    Ok(Imported { module, weights: Box::new(literals.weights), info })
}
