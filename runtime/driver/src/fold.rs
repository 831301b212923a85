//! Computes prepared weights.
//!
//! Recipes are evaluated by the interpreter: they move and convert data, and run once.

use ir::{Env, Interpreter, Module, Precision, Tensor, Weights};
use passes::Recipe;

/// The value of a prepared weight.
///
/// # Errors
/// Names the weight, and what of its sources cannot be loaded or evaluated.
pub(crate) fn fold(
    module: &Module,
    weights: &dyn Weights,
    recipe: &Recipe,
) -> Result<Tensor, String> {
    let interpreter = Interpreter::new(module, weights, Precision::F32);
    let mut out = interpreter
        .eval(&recipe.graph, &[], &Env::new())
        .map_err(|e| format!("`{}`: {e}", recipe.name))?;
    out.pop().ok_or_else(|| format!("`{}` has no value", recipe.name))
}
