//! Outputs that are being sent, which the next run is not to write over.

use cuda::{Event, Stream};

use crate::{ExecError, collectives::Handle};

/// Outputs of a program's last run that a device reads until an event.
#[derive(Debug)]
pub(crate) struct Lent {
    /// What it is about, for errors.
    pub(crate) label: String,
    /// The end of the device's part.
    pub(crate) sent: Event,
    /// That the receiver has come to it, by a deadline: devices wait without one.
    pub(crate) taken: Handle<()>,
}

impl Lent {
    /// Lets a stream wait until they have been sent.
    pub(super) fn hold(&self, stream: &Stream) -> Result<(), ExecError> {
        Ok(stream.wait(&self.sent)?)
    }

    /// Whether the receiver has come, once the stream has.
    pub(super) fn end(self) -> Result<(), ExecError> {
        let Lent { label, taken, .. } = self;
        taken.wait().map_err(|source| ExecError::Collective { label, source })
    }
}
