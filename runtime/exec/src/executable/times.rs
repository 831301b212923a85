//! How long parts of a run took.

use std::time::Duration;

use ir::Dim;

use super::Executable;
use crate::Trace;

/// How long a launch took.
#[derive(Clone, Copy, Debug)]
pub struct LaunchTime<'a> {
    /// What it computes.
    pub label: &'a str,
    /// Its kernel.
    pub kernel: &'a ir::Kernel,
    /// From the barrier before it to the barrier after it.
    pub time: Duration,
    /// Floating point operations, for the symbols of this run.
    pub flops: u64,
    /// Bytes that it must read and write, for the symbols of this run.
    pub bytes: u64,
}

/// How long parts of the last run took.
#[derive(Debug, Default)]
pub(super) struct Times {
    /// Of each launch, where they are measured.
    pub(super) launches: Option<Vec<Duration>>,
    /// How long collectives were waited for, by their number.
    pub(super) waits: Vec<(usize, Duration)>,
}

impl Executable {
    /// Whether to measure each launch from now on, which costs some ten nanoseconds a launch.
    pub fn set_profiling(&mut self, on: bool) {
        self.times.launches = on.then(Vec::new);
    }

    /// Records every run and launch from now on; `None` ends that.
    pub fn set_trace(&mut self, trace: Option<Trace>) {
        self.set_profiling(trace.is_some());
        self.trace = trace;
    }

    /// The launches of the last run in order; none unless [`set_profiling`](Self::set_profiling).
    pub fn launch_times(&self) -> impl Iterator<Item = LaunchTime<'_>> {
        let program = self.program();
        let symbols = &self.sizes.symbols;
        let eval = move |dim: &Dim| {
            let value = dim.compile(&program.symbols).ok().and_then(|d| d.eval(symbols));
            value.and_then(|v| u64::try_from(v).ok()).unwrap_or(0)
        };
        let times = self.times.launches.as_deref().unwrap_or_default();
        program.launches.iter().zip(times).map(move |(launch, time)| {
            let kernel = &program.kernels[launch.kernel as usize];
            let (flops, bytes) = (eval(&kernel.flops), eval(&kernel.bytes));
            LaunchTime { label: &launch.label, kernel, time: *time, flops, bytes }
        })
    }
}
