//! Runs that were made before, and their graphs.

use cuda::{Address, Graph, WeakAddress};

/// Graphs that are kept, of the sizes that were used last.
const GRAPHS: usize = 64;

/// A run that has been made before: by the values of the symbols, and where states were.
#[derive(Debug)]
pub(super) struct Recorded {
    symbols: Vec<i64>,
    /// States go when their owner lets them go.
    states: Vec<WeakAddress>,
    /// Of each segment, from the second run on.
    pub(super) graphs: Option<Vec<Graph>>,
}

/// The last runs of different sizes or states; the last used is the last.
#[derive(Debug, Default)]
pub(super) struct Recordings(Vec<Recorded>);

impl Recordings {
    /// Takes out the last run like this one, and says whether there was one.
    pub(super) fn take(&mut self, symbols: &[i64], states: &[Address]) -> (Recorded, bool) {
        let is_same = |r: &Recorded| r.symbols == symbols && r.states == states;
        if let Some(at) = self.0.iter().position(is_same) {
            return (self.0.remove(at), true);
        }
        self.0.retain(|r| r.states.iter().all(WeakAddress::is_alive));
        if self.0.len() == GRAPHS {
            self.0.remove(0);
        }
        let states = states.iter().map(Address::downgrade).collect();
        let symbols = symbols.to_vec();
        (Recorded { symbols, states, graphs: None }, false)
    }

    /// Puts a run in, as the last one.
    pub(super) fn keep(&mut self, recorded: Recorded) {
        self.0.push(recorded);
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
