//! What a run has to do at least, from the program alone: the upper sides of its roofline.

use ir::{Dim, Env, Launch, Program};

/// Work of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Work {
    /// Floating point operations, those of attention apart, which depend on the context.
    pub(super) flops: f64,
    /// Bytes to read and write, keys and values apart.
    pub(super) bytes: f64,
}

/// The work of running a program on so many packed tokens of so many sequences.
///
/// Logits are wanted for one row a sequence.
pub(super) fn work(program: &Program, tokens: u64, sequences: u64) -> Work {
    let mut env: Env = program.symbols.iter().map(|(s, b)| (s.clone(), b.lo)).collect();
    for (symbol, value) in [("T", tokens), ("S", sequences), ("R", sequences)] {
        if let Some(slot) = env.get_mut(symbol) {
            *slot = i64::try_from(value).unwrap_or(i64::MAX);
        }
    }
    let value = |dim: &Dim| dim.eval(&env).unwrap_or(0).max(0) as f64;
    let kernel = |launch: &Launch| &program.kernels[launch.kernel as usize];
    let of_tokens = program.launches.iter().map(kernel).filter(|k| !is_attention(&k.op));
    of_tokens.fold(Work::default(), |sum, k| Work {
        flops: sum.flops + value(&k.flops),
        bytes: sum.bytes + value(&k.bytes),
    })
}

/// How much of its blocks attention reads is known only when it runs: a program states the most.
pub(super) fn is_attention(op: &str) -> bool {
    matches!(op, "attention" | "paged_attention")
}

#[cfg(test)]
mod tests {
    use ir::{Bounds, Kernel, Symbols};

    use super::*;

    #[test]
    fn attention_is_counted_by_its_context() {
        let kernel = |op: &str, flops: &str, bytes: &str| Kernel {
            op: op.into(),
            symbol: op.into(),
            code_offset: 0,
            dims: Vec::new(),
            tiles: Dim::from(1),
            scratch_bytes: 0,
            flops: flops.parse().unwrap(),
            bytes: bytes.parse().unwrap(),
            cuda: Vec::new(),
        };
        let launch = |kernel| Launch { kernel, args: Vec::new(), label: String::new() };
        let program = Program {
            symbols: Symbols::from_iter(
                ["T", "S", "R", "NB"].map(|s| (s.into(), Bounds { lo: 1, hi: 1000 })),
            ),
            kernels: vec![
                kernel("linear", "100*T", "4*T + 5000"),
                kernel("paged_attention", "T", "99999999"),
                kernel("linear", "7*R", "S"),
            ],
            launches: vec![launch(0), launch(1), launch(0), launch(2)],
            ..Program::default()
        };
        assert_eq!(work(&program, 10, 2), Work { flops: 2014.0, bytes: 10_082.0 });
    }
}
