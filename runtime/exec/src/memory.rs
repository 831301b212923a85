//! How much memory a model takes: predicted from its artifact, measured while it runs, and allowed.

use std::{fs, path::Path};

use ir::{
    Port,
    artifact::{Manifest, PAGE},
};
use serde::Serialize;

use crate::{
    Device, ExecError, Executable, States, bind::Symbolic, executable::pinned_bytes,
    resident::resident_bytes,
};

/// What the process needs besides weights, arenas and states: the binary, stacks, and tables of the
/// artifact. The tokenizer comes on top, see [`host_overhead_bytes`].
pub const HOST_OVERHEAD_BYTES: u64 = 24 << 20;

/// What a process takes of a GPU besides weights, arenas and states: loaded code and its stacks.
pub const GPU_OVERHEAD_BYTES: u64 = 64 << 20;

/// The host's overhead for an artifact: [`HOST_OVERHEAD_BYTES`], and room for the tokenizer's
/// tables, which take some ten times the bytes of its file. Of one for GPUs the overhead there.
pub fn host_overhead_bytes(manifest: &Manifest) -> u64 {
    match manifest.target.cuda {
        Some(_) => GPU_OVERHEAD_BYTES,
        None => HOST_OVERHEAD_BYTES + 10 * manifest.text.bytes,
    }
}

/// Bytes of memory by use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Packed weights, mapped from the file and shared between processes.
    pub weight_bytes: u64,
    /// Code, mapped from the file and shared between processes.
    pub code_bytes: u64,
    /// Arenas of the entry points.
    pub arena_bytes: u64,
    /// Scratch memory of the threads.
    pub scratch_bytes: u64,
    /// States: keys and values.
    pub state_bytes: u64,
    /// [`host_overhead_bytes`], which is stated, not measured.
    pub host_bytes: u64,
    /// Pinned memory of this machine that inputs and outputs of a GPU go through.
    pub pinned_bytes: u64,
}

impl Memory {
    /// The sum: the peak of this machine's memory or, of an artifact for GPUs, of theirs, since
    /// all of it lives at once. What is pinned for GPUs is no part of it.
    pub fn total(&self) -> u64 {
        let Memory { weight_bytes, code_bytes, arena_bytes, .. } = self;
        let Memory { scratch_bytes, state_bytes, host_bytes, .. } = self;
        weight_bytes + code_bytes + arena_bytes + scratch_bytes + state_bytes + host_bytes
    }

    /// The peak of some entry points of an artifact, before anything is loaded; `symbols` has a
    /// value for every symbol in the types of states.
    ///
    /// Programs that name their states alike share them.
    ///
    /// # Errors
    /// [`ExecError::Symbol`] for values that are missing or out of bounds.
    pub fn predict(
        manifest: &Manifest,
        entries: &[&str],
        threads: usize,
        symbols: &[(&str, i64)],
    ) -> Result<Memory, ExecError> {
        let weights = manifest.weights.first().zip(manifest.weights.last());
        // Data begin on a page boundary, and whole pages are mapped.
        let pages = |offset: u64, end: u64| end.next_multiple_of(PAGE) - offset / PAGE * PAGE;
        let mut memory = Memory {
            weight_bytes: weights.map_or(0, |(a, z)| pages(a.offset, z.offset + z.bytes)),
            code_bytes: manifest.code.bytes,
            host_bytes: host_overhead_bytes(manifest),
            ..Memory::default()
        };
        let mut states = Vec::new();
        if manifest.target.cuda.is_some() {
            let programs = entries.iter().filter_map(|entry| manifest.program(entry));
            // Programs have it in turn.
            memory.arena_bytes +=
                programs.clone().map(ir::Program::staging_bytes).max().unwrap_or(0);
            memory.pinned_bytes = programs.map(pinned_bytes).sum();
        }
        for program in entries.iter().filter_map(|entry| manifest.program(entry)) {
            memory.arena_bytes += program.arena_bytes;
            memory.scratch_bytes += program.scratch_bytes().next_multiple_of(4096) * threads as u64;
            let symbolic = Symbolic::new(program);
            let known = |symbol: &&(&str, i64)| program.symbols.contains_key(symbol.0);
            let values =
                symbolic.values(&symbols.iter().filter(known).copied().collect::<Vec<_>>())?;
            let is_part = |port: &&Port| program.parts.iter().any(|part| part.state == port.name);
            for port in program.states.iter().filter(|port| !is_part(port)) {
                if !states.contains(&&port.name) {
                    states.push(&port.name);
                    memory.state_bytes += symbolic.port_bytes("state", port, &values)?;
                }
            }
        }
        Ok(memory)
    }

    /// What loaded entry points of one model really use now: pages that were touched.
    pub fn measure(executables: &[&Executable], states: &States) -> Memory {
        let gpu = executables.first().and_then(|first| first.model().device().gpu());
        let mut memory = Memory { state_bytes: states.resident_bytes(), ..Memory::default() };
        if let Some(first) = executables.first() {
            let artifact = first.model().artifact();
            memory.weight_bytes = match gpu {
                Some(_) => artifact.weight_memory().len() as u64,
                None => resident_bytes(artifact.weight_memory()),
            };
            memory.code_bytes = artifact.manifest().code.bytes;
            memory.host_bytes = host_overhead_bytes(artifact.manifest());
        }
        for executable in executables {
            let (arena, scratch) = executable.resident_bytes();
            memory.arena_bytes += arena;
            memory.scratch_bytes += scratch;
            memory.pinned_bytes += executable.pinned_bytes();
        }
        if let Some(used) = gpu.and_then(|gpu| gpu.used_bytes().ok()) {
            // What the driver says of the whole: the rest is overhead.
            memory.host_bytes = 0;
            memory.host_bytes = used.saturating_sub(memory.total());
        }
        memory
    }

    /// Compares what must be writable memory (arenas, scratch, states, host), or all of it on a
    /// GPU, with what this process may use.
    ///
    /// # Errors
    /// [`ExecError::Memory`], which names the parts.
    pub fn check_limit(&self, device: &Device) -> Result<(), ExecError> {
        let needed = match device.facts() {
            Some(_) => self.total(),
            None => self.total() - self.weight_bytes - self.code_bytes,
        };
        match device.memory_limit_bytes() {
            Some(limit) if needed > limit => Err(ExecError::Memory {
                what: format!(
                    "the model (weights {}, arena {}, scratch {}, states {}, overhead {})",
                    self.weight_bytes,
                    self.arena_bytes,
                    self.scratch_bytes,
                    self.state_bytes,
                    self.host_bytes
                ),
                bytes: needed,
                reason: format!(
                    "this process may use {limit}; ask for a shorter context, or compile with a \
                     smaller `--max-batch-tokens`"
                ),
            }),
            _ => Ok(()),
        }
    }
}

/// The largest resident size that this process has had, as the kernel counts it.
pub fn peak_resident_bytes() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Memory that this process may use: the machine's, or the limit of its control group.
pub fn memory_limit_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok();
    let machine = machine.and_then(|text| kilobytes(&text, "MemTotal:"));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    [machine, group_limit(&groups, Path::new("/sys/fs/cgroup"))].into_iter().flatten().min()
}

/// The lowest limit of the groups that `/proc/self/cgroup` lists, and of those above them.
fn group_limit(groups: &str, root: &Path) -> Option<u64> {
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let (base, file) = match controllers {
            "" => (root.to_path_buf(), "memory.max"),
            c if c.split(',').any(|c| c == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let group = base.join(group.trim_start_matches('/'));
        for folder in group.ancestors().take_while(|folder| folder.starts_with(&base)) {
            let limit = fs::read_to_string(folder.join(file)).ok();
            limits.extend(limit.and_then(|text| text.trim().parse::<u64>().ok()));
        }
    }
    limits.into_iter().min()
}

fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_limit_of_a_group_and_its_ancestors_counts() {
        let root = std::env::temp_dir().join(format!("brolly-cgroup-{}", std::process::id()));
        let put = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("a/b/memory.max", "max\n");
        put("a/memory.max", "1000\n");
        put("memory.max", "5000\n");
        put("memory/c/memory.limit_in_bytes", "700\n");
        assert_eq!(group_limit("0::/a/b\n", &root), Some(1000));
        assert_eq!(group_limit("0::/\n", &root), Some(5000));
        assert_eq!(group_limit("3:cpu:/a\n5:memory:/c\n0::/a\n", &root), Some(700));
        assert_eq!(group_limit("nonsense", &root), None);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn the_process_knows_itself() {
        let peak = peak_resident_bytes().unwrap();
        assert!((1 << 20..memory_limit_bytes().unwrap()).contains(&peak));
        assert_eq!(kilobytes("A: 1 kB\nVmHWM:\t  12 kB\n", "VmHWM:"), Some(12 << 10));
    }
}
