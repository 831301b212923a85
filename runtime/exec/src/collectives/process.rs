//! Processes of the same machine, which see each other end.
//!
//! A launcher that notices first that a rank has been killed ends the others a moment later, before
//! silence or a broken connection tells them of whom they will have to speak.

use std::{fs, process, sync::LazyLock};

use serde::{Deserialize, Serialize};

use super::shards::digest;

/// A process, as those of the same machine find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    /// What tells machines, their boots and their containers apart.
    machine: u64,
    pub(super) pid: u32,
}

static OWN: LazyLock<Option<Process>> = LazyLock::new(|| {
    let boot = fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    let space = fs::read_link("/proc/self/ns/pid").ok()?;
    let machine = digest(boot.into_iter().chain(space.into_os_string().into_encoded_bytes()));
    Some(Process { machine, pid: process::id() })
});

/// What tells machines apart, whatever containers processes are in; 0 where the system does not
/// say.
pub(super) fn machine() -> u64 {
    let boot = fs::read("/proc/sys/kernel/random/boot_id");
    boot.map_or(0, digest)
}

impl Process {
    /// This one; `None` where the system does not say.
    pub(super) fn own() -> Option<Process> {
        *OWN
    }

    /// Whether it was on this machine and has ended.
    pub(super) fn is_gone(self) -> bool {
        if !OWN.is_some_and(|own| own.machine == self.machine) {
            return false;
        }
        match fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
            // Its name, in parentheses, may hold anything.
            Ok(stat) => {
                let state =
                    stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
                matches!(state, Some('Z' | 'X'))
            }
            Err(e) => e.kind() == std::io::ErrorKind::NotFound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_there_until_it_ends() {
        let own = Process::own().unwrap();
        assert!(!own.is_gone());
        let mut child = process::Command::new("sleep").arg("60").spawn().unwrap();
        let its = Process { pid: child.id(), ..own };
        assert!(!its.is_gone());
        child.kill().unwrap();
        // Dead, and not yet asked for.
        let begun = std::time::Instant::now();
        while !its.is_gone() && begun.elapsed().as_secs() < 10 {
            std::thread::yield_now();
        }
        assert!(its.is_gone());
        child.wait().unwrap();
        assert!(its.is_gone());
        assert!(!Process { machine: own.machine ^ 1, ..its }.is_gone(), "of another machine");
    }
}
