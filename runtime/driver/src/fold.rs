//! Computes prepared weights, some ahead of the one that is asked for.
//!
//! Recipes are evaluated by the interpreter: they move and convert data, and run once. A few
//! threads work ahead while earlier weights are hashed and written; memory stays bounded by the
//! number of weights in flight.

use std::{
    any::Any,
    collections::BTreeMap,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use ir::{Env, Interpreter, Module, Precision, Tensor, Weights};
use passes::Recipe;

/// Weights computed or being computed beyond the one that is asked for.
const AHEAD: usize = 3;

/// Runs `body` with a function that yields the prepared weights, to be called in order.
///
/// # Panics
/// As the computation of a weight that `body` asks for, and as `body`.
pub(crate) fn with_folded<R>(
    module: &Module,
    weights: &dyn Weights,
    recipes: &[&Recipe],
    threads: NonZeroUsize,
    body: impl FnOnce(&mut dyn FnMut(usize) -> Result<Tensor, String>) -> R,
) -> R {
    let shared = Shared::default();
    std::thread::scope(|scope| {
        for _ in 0..threads.get().min(AHEAD) {
            scope.spawn(|| {
                while let Some((i, recipe)) = shared.next(recipes) {
                    let run = AssertUnwindSafe(|| fold(module, weights, recipe));
                    let result = catch_unwind(run);
                    shared.lock().done.insert(i, result);
                    shared.changed.notify_all();
                }
            });
        }
        // However `body` ends, the scope waits for the workers, and they for what is wanted.
        let _end = End(&shared);
        body(&mut |i| shared.take(i))
    })
}

/// A weight, or the payload of the panic that there is instead.
type Folded = Result<Result<Tensor, String>, Box<dyn Any + Send>>;

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    next: AtomicUsize,
}

#[derive(Default)]
struct State {
    done: BTreeMap<usize, Folded>,
    /// The weight that is asked for.
    wanted: usize,
    /// Nothing is wanted any more.
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// The next recipe for a worker, when its turn comes.
    fn next<'a>(&self, recipes: &[&'a Recipe]) -> Option<(usize, &'a Recipe)> {
        let i = self.next.fetch_add(1, Ordering::Relaxed);
        let recipe = *recipes.get(i)?;
        let mut state = self.lock();
        while i > state.wanted + AHEAD && !state.ended {
            state = self.wait(state);
        }
        (!state.ended).then_some((i, recipe))
    }

    /// Waits for a weight.
    fn take(&self, i: usize) -> Result<Tensor, String> {
        let mut state = self.lock();
        state.wanted = i;
        self.changed.notify_all();
        loop {
            if let Some(result) = state.done.remove(&i) {
                drop(state);
                return result.unwrap_or_else(|payload| resume_unwind(payload));
            }
            state = self.wait(state);
        }
    }
}

/// Sends the workers home.
struct End<'a>(&'a Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

fn fold(module: &Module, weights: &dyn Weights, recipe: &Recipe) -> Result<Tensor, String> {
    let interpreter = Interpreter::new(module, weights, Precision::F32);
    let mut out = interpreter
        .eval(&recipe.graph, &[], &Env::new())
        .map_err(|e| format!("`{}`: {e}", recipe.name))?;
    out.pop().ok_or_else(|| format!("`{}` has no value", recipe.name))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ir::{DType, TensorType};

    use super::*;

    /// Weights of which the last cannot be loaded.
    struct Broken;

    impl Weights for Broken {
        fn load(&self, name: &str) -> Result<Tensor, String> {
            assert_ne!(name, "w5", "a bug");
            Ok(Tensor::from_f32s(&[1], &[1.5]))
        }
    }

    /// Runs `body` on six recipes, each of one weight.
    fn run<R>(body: impl FnOnce(&mut dyn FnMut(usize) -> Result<Tensor, String>) -> R) -> R {
        let mut module = Module::new("test");
        for i in 0..6 {
            module.weight(&format!("w{i}"), TensorType::new(DType::F32, [1usize]));
        }
        let recipe = |i: usize| {
            let mut b = module.builder("prepare");
            let name: Arc<str> = format!("w{i}").into();
            let w = b.weight(&name).unwrap();
            b.output("w", w);
            Recipe { name: name.clone(), graph: b.finish(), sources: vec![name] }
        };
        let recipes: Vec<Recipe> = (0..6).map(recipe).collect();
        let recipes: Vec<&Recipe> = recipes.iter().collect();
        with_folded(&module, &Broken, &recipes, NonZeroUsize::new(2).unwrap(), body)
    }

    fn message(payload: &(dyn Any + Send)) -> &str {
        let text = payload.downcast_ref::<&str>().copied();
        text.or_else(|| payload.downcast_ref().map(String::as_str)).unwrap_or_default()
    }

    #[test]
    fn a_panic_while_folding_reaches_the_caller_as_one() {
        let caught = catch_unwind(|| run(|next| (0..6).map(next).collect::<Vec<_>>().len()));
        let payload = caught.unwrap_err();
        assert!(message(&*payload).contains("a bug"), "{}", message(&*payload));
        assert_eq!(run(|next| next(0).map(|t| t.to_f64s())), Ok(vec![1.5]));
    }

    #[test]
    fn a_panic_while_writing_does_not_leave_workers_waiting() {
        let caught = catch_unwind(|| {
            run(|next| {
                next(0).unwrap();
                panic!("{} in between", "a bug");
            })
        });
        assert_eq!(message(&*caught.unwrap_err()), "a bug in between");
    }
}
