//! How answers reach those who asked.

use std::sync::mpsc::Sender;

use tokio::sync::{mpsc, oneshot};

use super::{Event, worker::Command};
use crate::ServeError;

/// The events of a request, in order. Dropping it ends the request.
#[derive(Debug)]
pub struct EventStream {
    pub(super) request: u64,
    pub(super) events: mpsc::UnboundedReceiver<Event>,
    pub(super) commands: Sender<Command>,
}

impl EventStream {
    /// The next event, or `None` after the last.
    pub async fn recv(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// As [`recv`](Self::recv), for threads outside of an asynchronous runtime.
    ///
    /// # Panics
    /// Within an asynchronous runtime.
    pub fn blocking_recv(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.events.close();
        // An engine that has ended has nothing to cancel.
        let _ = self.commands.send(Command::Cancel(self.request));
    }
}

/// An answer that is to come.
#[derive(Debug)]
pub struct Reply<T>(pub(super) oneshot::Receiver<Result<T, ServeError>>);

impl<T> Reply<T> {
    /// The answer.
    ///
    /// # Errors
    /// What went wrong; [`ServeError::Stopped`] if the engine has ended.
    pub async fn wait(self) -> Result<T, ServeError> {
        self.0.await.unwrap_or(Err(ServeError::Stopped))
    }

    /// As [`wait`](Self::wait), for threads outside of an asynchronous runtime.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Panics
    /// Within an asynchronous runtime.
    pub fn blocking_wait(self) -> Result<T, ServeError> {
        self.0.blocking_recv().unwrap_or(Err(ServeError::Stopped))
    }
}
