//! Computes prepared weights, some ahead of the one that is asked for.
//!
//! Recipes are evaluated by the interpreter: they move and convert data, and run once. A few
//! threads work ahead while earlier weights are hashed and written; memory stays bounded by the
//! number of weights in flight.

use std::{
    collections::BTreeMap,
    sync::{
        Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use ir::{Env, Interpreter, Module, Precision, Tensor, Weights};
use passes::Recipe;

/// Weights computed or being computed beyond the one that is asked for.
const AHEAD: usize = 3;

/// Runs `body` with a function that yields the prepared weights, to be called in order.
pub(crate) fn with_folded<R>(
    module: &Module,
    weights: &dyn Weights,
    recipes: &[&Recipe],
    body: impl FnOnce(&mut dyn FnMut(usize) -> Result<Tensor, String>) -> R,
) -> R {
    let state = Mutex::new(State { done: BTreeMap::new(), wanted: 0 });
    let changed = Condvar::new();
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from).clamp(1, AHEAD);
    let lock = || state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let mut s = lock();
                    while i > s.wanted.saturating_add(AHEAD) {
                        s = changed.wait(s).unwrap_or_else(std::sync::PoisonError::into_inner);
                    }
                    let Some(recipe) = recipes.get(i) else { return };
                    drop(s);
                    let result = fold(module, weights, recipe);
                    lock().done.insert(i, result);
                    changed.notify_all();
                }
            });
        }
        let result = body(&mut |i| {
            let mut s = lock();
            s.wanted = i;
            changed.notify_all();
            loop {
                if let Some(result) = s.done.remove(&i) {
                    return result;
                }
                s = changed.wait(s).unwrap_or_else(std::sync::PoisonError::into_inner);
            }
        });
        // Let workers that wait for their turn find that there is nothing left.
        next.store(recipes.len(), Ordering::Relaxed);
        lock().wanted = usize::MAX;
        changed.notify_all();
        result
    })
}

struct State {
    done: BTreeMap<usize, Result<Tensor, String>>,
    /// The weight that is asked for; `usize::MAX` at the end.
    wanted: usize,
}

fn fold(module: &Module, weights: &dyn Weights, recipe: &Recipe) -> Result<Tensor, String> {
    let run = || {
        let interpreter = Interpreter::new(module, weights, Precision::F32);
        let mut out = interpreter
            .eval(&recipe.graph, &[], &Env::new())
            .map_err(|e| format!("`{}`: {e}", recipe.name))?;
        out.pop().ok_or_else(|| format!("`{}` has no value", recipe.name))
    };
    // A panic must reach the caller as an error: it waits for this weight.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err(format!("`{}` could not be computed: internal error", recipe.name)))
}
