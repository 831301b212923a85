//! What carries messages between ranks.

use std::{fmt, sync::Arc};

use super::{
    Cause, Failure,
    call::Call,
    inbox::{Incoming, Sink},
    watch::Watch,
};

/// Bytes for another rank.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outgoing<'a> {
    pub(super) to: usize,
    pub(super) bytes: &'a [u8],
}

/// Carries messages between ranks, which it names by their numbers in the job.
pub(super) trait Transport: Send + Sync + fmt::Debug {
    /// This rank.
    fn rank(&self) -> usize;

    /// What is known of all ranks.
    fn watch(&self) -> &Watch;

    /// Sends, then hands what comes to `sink`, chunk by chunk and within a chunk in the order of
    /// `from`; returns when what was sent may change. `detached` messages wait for nobody to take
    /// them.
    ///
    /// # Errors
    /// The failure that ends the job.
    fn exchange(
        &self,
        call: &Call,
        phase: u8,
        sends: &[Outgoing<'_>],
        detached: bool,
        from: &[Incoming],
        sink: &mut Sink<'_>,
    ) -> Result<(), Arc<Failure>>;

    /// Ends the job for all ranks, unless it has failed before; returns what it fails by.
    fn fail(&self, failure: Failure) -> Arc<Failure>;

    /// Tells the others that this rank needs nothing more.
    fn end(&self);

    /// That `rank` is to blame, noticed outside of any collective.
    fn blame(&self, rank: usize, cause: Cause) -> Failure {
        let (me, watch) = (self.rank(), self.watch());
        Failure { rank, noticed_by: me, step: watch.step(me), place: watch.place(me), cause }
    }
}
