//! Launches that are recorded once and started together.

use std::sync::Arc;

use crate::{
    Address, WeakAddress,
    driver::{Driver, GraphHandle},
    pinned::Room,
    stream::Keep,
};

/// A graph, and what its launches use, but for what who starts it has to give; its copies are the
/// same one.
#[derive(Clone, Debug)]
pub struct Graph {
    captured: Arc<Captured>,
}

#[derive(Debug)]
struct Captured {
    driver: Arc<dyn Driver>,
    handle: GraphHandle,
    kept: Vec<Keep>,
    given: Vec<WeakAddress>,
}

impl Graph {
    /// A graph that keeps what its launches use, without the memory of what is `given`.
    pub(crate) fn new(
        driver: Arc<dyn Driver>,
        handle: GraphHandle,
        mut kept: Vec<Keep>,
        given: &[Address],
    ) -> Graph {
        let given: Vec<WeakAddress> = given.iter().map(Address::downgrade).collect();
        kept.retain(|keep| match keep {
            Keep::Memory(memory) => !given.iter().any(|place| place.is_in(memory)),
            Keep::Kernel(_) | Keep::Multiplier(_) | Keep::Graph(_) | Keep::Pinned(_) => true,
        });
        Graph { captured: Arc::new(Captured { driver, handle, kept, given }) }
    }

    /// Whether these are the places that it was recorded with.
    pub(crate) fn takes(&self, given: &[Address]) -> bool {
        self.captured.given == given
    }

    pub(crate) fn handle(&self) -> GraphHandle {
        self.captured.handle
    }

    /// Pinned memory that it copies.
    pub(crate) fn pinned(&self) -> impl Iterator<Item = &Arc<Room>> {
        self.captured.kept.iter().filter_map(|keep| match keep {
            Keep::Pinned(room) => Some(room),
            _ => None,
        })
    }

    pub(crate) fn symbols(&self) -> Vec<String> {
        self.captured.kept.iter().flat_map(Keep::symbols).collect()
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        let _ = self.driver.destroy_graph(self.handle);
    }
}
