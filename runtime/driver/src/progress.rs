//! How far a compile has come, for whoever shows it.

/// Hears of a compile's progress. Stages begin on the thread that compiles; steps may be done on
/// several at once.
pub trait Progress: Sync {
    /// A stage begins; `steps` of work follow, 0 where that is not known.
    fn stage(&self, name: &str, steps: u64);

    /// Some steps of the current stage are done.
    fn advance(&self, steps: u64);
}

/// Tells nobody.
pub struct Silent;

impl Progress for Silent {
    fn stage(&self, _name: &str, _steps: u64) {}
    fn advance(&self, _steps: u64) {}
}
