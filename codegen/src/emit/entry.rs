//! Code at the kernel's entry: what is loaded once, wherever the generator first needs it.

use super::Emitter;

impl Emitter {
    /// Emits `body` at the top of the function, before everything else but constants, so that its
    /// values may be used anywhere. It may read the kernel's parameters and other entry values
    /// only.
    pub fn at_entry<R>(&self, body: impl FnOnce() -> R) -> R {
        let (text, depth) = {
            let mut state = self.state.borrow_mut();
            (std::mem::take(&mut state.body), std::mem::replace(&mut state.depth, 2))
        };
        let result = body();
        let mut state = self.state.borrow_mut();
        let lines = std::mem::replace(&mut state.body, text);
        state.constants.push_str(&lines);
        state.depth = depth;
        result
    }
}
