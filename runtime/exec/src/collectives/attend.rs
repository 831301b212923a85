//! Programs whose collectives devices do by themselves: the ranks meet once for all of them.
//!
//! Devices wait for each other without a word and for ever. So every rank says which program it
//! begins and which sizes it has, while its device computes; who says something else, comes too
//! late or does not live is found here, by deadlines and blame as in any meeting.

use std::sync::Arc;

use ir::DType;

use super::{Cause, CollectiveError, Failure, Group, Turn, call::Op};

impl Turn<'_> {
    /// Returns when all members have begun the same program, with so many collectives of sizes
    /// that have this digest.
    pub(crate) fn attend(&self, collectives: usize, digest: u64) -> Result<(), CollectiveError> {
        let call = self.core.call(Op::Program, DType::U8, collectives, digest);
        self.record(&call, 0, |transport| {
            let sends = self.to_others(|_| &[]);
            let from = self.parts_of_all(|_| 0);
            transport.exchange(&call, 0, &sends, true, &from, &mut |_, _, _| ())
        })
    }
}

impl Group {
    /// The failure that has ended the job, if one has.
    pub(crate) fn failure(&self) -> Option<Arc<Failure>> {
        self.0.shared.transport.watch().failure()
    }

    /// Ends the job for all ranks, with this one to blame; what it fails by.
    pub(crate) fn fail(&self, cause: Cause) -> CollectiveError {
        let transport = &self.0.shared.transport;
        let failure = transport.fail(transport.blame(self.0.shared.rank(), cause));
        self.0.shared.surface(&failure)
    }
}
