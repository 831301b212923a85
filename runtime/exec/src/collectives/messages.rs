//! Messages from one rank to one other, as between the stages of a pipeline.

use std::sync::Arc;

use super::{CollectiveError, Group, group::Core, inbox::Incoming, transport::Outgoing};

/// A message that is to come.
#[derive(Debug)]
#[must_use = "the message stays where it is until it is waited for"]
pub struct Expected {
    core: Arc<Core>,
    from: usize,
    seq: u64,
}

impl Group {
    /// Sends to another member, and does not wait for it to take the message.
    ///
    /// # Errors
    /// [`CollectiveError::Failed`] if the job has failed; [`CollectiveError::Usage`] if there is no
    /// such member, or it is this one.
    pub fn send(&self, to: usize, data: &[u8]) -> Result<(), CollectiveError> {
        let core = &self.0;
        core.check_other("send", to)?;
        let to = core.members[to];
        let call = core.call_to(to, data.len());
        let sends = [Outgoing { to, bytes: data }];
        core.shared.record(&call, data.len(), |transport| {
            transport.exchange(&call, 0, &sends, true, &[], &mut |_, _, _| ())
        })
    }

    /// Receives the next message from another member; messages of a pair keep their order.
    ///
    /// # Errors
    /// As [`send`](Self::send); [`CollectiveError::Failed`] also for a message of another length.
    pub fn recv(&self, from: usize, data: &mut [u8]) -> Result<(), CollectiveError> {
        self.expect(from)?.wait(data)
    }

    /// Tells another member of a message that goes between devices: so many bytes, in parts whose
    /// lengths have this digest. It takes that message's place in the order.
    pub(crate) fn announce(
        &self,
        to: usize,
        bytes: u64,
        digest: u64,
    ) -> Result<(), CollectiveError> {
        let core = &self.0;
        core.check_other("send", to)?;
        let to = core.members[to];
        let call = core.announcement(core.next_to(to), bytes, digest);
        let sends = [Outgoing { to, bytes: &[] }];
        core.shared.record(&call, 0, |transport| {
            transport.exchange(&call, 0, &sends, true, &[], &mut |_, _, _| ())
        })
    }

    /// Returns when another member has told of its next message, if it is such a one.
    pub(crate) fn announced(
        &self,
        from: usize,
        bytes: u64,
        digest: u64,
    ) -> Result<(), CollectiveError> {
        let core = &self.0;
        core.check_other("recv", from)?;
        let from = core.members[from];
        let call = core.announcement(core.next_from(from), bytes, digest);
        let from = [Incoming { from, bytes: 0 }];
        core.shared.record(&call, 0, |transport| {
            transport.exchange(&call, 0, &[], true, &from, &mut |_, _, _| ())
        })
    }

    /// Takes a place in the order of messages from a member, to receive into later.
    ///
    /// # Errors
    /// [`CollectiveError::Usage`] if there is no such member, or it is this one.
    pub fn expect(&self, from: usize) -> Result<Expected, CollectiveError> {
        self.0.check_other("recv", from)?;
        let from = self.0.members[from];
        Ok(Expected { core: self.0.clone(), from, seq: self.0.next_from(from) })
    }
}

impl Expected {
    /// Receives the message.
    ///
    /// # Errors
    /// [`CollectiveError::Failed`] if the job has failed, or the message has another length.
    pub fn wait(self, data: &mut [u8]) -> Result<(), CollectiveError> {
        let call = self.core.call_from(self.seq, data.len());
        let from = [Incoming { from: self.from, bytes: data.len() }];
        let mut sink = |_: usize, offset: usize, chunk: &[u8]| {
            data[offset..offset + chunk.len()].copy_from_slice(chunk);
        };
        self.core.shared.record(&call, from[0].bytes, |transport| {
            transport.exchange(&call, 0, &[], true, &from, &mut sink)
        })
    }
}

impl Core {
    pub(super) fn check_member(
        &self,
        op: &'static str,
        index: usize,
    ) -> Result<(), CollectiveError> {
        let size = self.members.len();
        if index < size {
            return Ok(());
        }
        let reason = format!("member {index} is not one of {size}");
        Err(CollectiveError::Usage { op, reason })
    }

    fn check_other(&self, op: &'static str, index: usize) -> Result<(), CollectiveError> {
        self.check_member(op, index)?;
        if index != self.index {
            return Ok(());
        }
        let reason = format!("member {index} is this rank itself");
        Err(CollectiveError::Usage { op, reason })
    }
}
