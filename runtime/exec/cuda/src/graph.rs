//! Launches that are recorded once and started together.

use std::sync::Arc;

use crate::{
    driver::{Driver, GraphHandle},
    stream::Keep,
};

/// A graph, and what its launches use; its copies are the same one.
#[derive(Clone, Debug)]
pub struct Graph {
    captured: Arc<Captured>,
}

#[derive(Debug)]
struct Captured {
    driver: Arc<dyn Driver>,
    handle: GraphHandle,
    kept: Vec<Keep>,
}

impl Graph {
    pub(crate) fn new(driver: Arc<dyn Driver>, handle: GraphHandle, kept: Vec<Keep>) -> Graph {
        Graph { captured: Arc::new(Captured { driver, handle, kept }) }
    }

    pub(crate) fn handle(&self) -> GraphHandle {
        self.captured.handle
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
