//! What launches cost, by the roofline of the target.

use ir::{Dim, Env, Kernel, Program, Target};
use serde::Serialize;

/// Sizes of one run.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    env: Env,
    target: Target,
}

/// Work of a launch, and the time that one core of the target, or a GPU, needs for it at best.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Cost {
    /// Floating point operations.
    pub(crate) flops: f64,
    /// Bytes that must be read and written.
    pub(crate) bytes: f64,
    /// `max(flops / peak, bytes / bandwidth)` and the launch itself.
    pub(crate) seconds: f64,
}

impl Step {
    /// The largest step of a program: every symbol at its upper bound, memory for states apart,
    /// which has the size `blocks`.
    pub(crate) fn largest(program: &Program, target: &Target, states: &[(String, i64)]) -> Step {
        Step::at(program, target, states, |b| b.hi)
    }

    /// The smallest.
    pub(crate) fn smallest(program: &Program, target: &Target, states: &[(String, i64)]) -> Step {
        Step::at(program, target, states, |b| b.lo.max(1).min(b.hi))
    }

    fn at(
        program: &Program,
        target: &Target,
        states: &[(String, i64)],
        value: fn(&ir::Bounds) -> i64,
    ) -> Step {
        let mut env: Env = program.symbols.iter().map(|(s, b)| (s.clone(), value(b))).collect();
        for (name, value) in states {
            if let Some(slot) = env.get_mut(name.as_str()) {
                *slot = *value;
            }
        }
        Step { env, target: target.clone() }
    }

    /// `T = 512, S = 64`.
    pub(crate) fn describe(&self) -> String {
        let parts: Vec<String> = self.env.iter().map(|(s, v)| format!("{s} = {v}")).collect();
        parts.join(", ")
    }

    /// What one launch of a kernel costs.
    pub(crate) fn cost(&self, kernel: &Kernel) -> Cost {
        let value = |dim: &Dim| dim.eval(&self.env).unwrap_or(0).max(0) as f64;
        let (flops, bytes) = (value(&kernel.flops), value(&kernel.bytes));
        let Target { peak_flops, read_bandwidth, launch_seconds, .. } = self.target;
        let seconds = (flops / peak_flops).max(bytes / read_bandwidth) + launch_seconds;
        Cost { flops, bytes, seconds }
    }
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Cost>>(costs: I) -> Cost {
        costs.fold(Cost::default(), |a, b| Cost {
            flops: a.flops + b.flops,
            bytes: a.bytes + b.bytes,
            seconds: a.seconds + b.seconds,
        })
    }
}
