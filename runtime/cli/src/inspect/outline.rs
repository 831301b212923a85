//! Launches by function: repeated calls folded into one.
//!
//! The label of a launch begins with the call that it comes from, `layer.3/mlp.down linear`. Calls
//! of one function that launch the same kernels in the same order are shown once.

use std::collections::HashMap;

use ir::Program;
use serde::Serialize;

/// A part of a program, in order of its first launch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Item {
    /// One launch of the entry itself, by number.
    Launch {
        /// Its number.
        launch: usize,
        /// Its label.
        label: String,
    },
    /// A function.
    Function {
        /// Its name.
        name: String,
        /// The calls that are alike, by number.
        calls: Vec<usize>,
        /// Launches of the first call, with their labels inside the function.
        launches: Vec<(usize, String)>,
    },
}

/// The parts of a program.
pub(crate) fn outline(program: &Program) -> Vec<Item> {
    // Launches of a call may be interleaved with others: the planner orders by operands alone.
    let mut segments: Vec<Segment<'_>> = Vec::new();
    let mut started: HashMap<(&str, usize), usize> = HashMap::new();
    for (number, launch) in program.launches.iter().enumerate() {
        let Some((name, call, rest)) = call(&launch.label) else {
            let launches = vec![(number, launch.label.as_str())];
            segments.push(Segment { name: "", call: None, launches });
            continue;
        };
        let at = *started.entry((name, call)).or_insert(segments.len());
        if at == segments.len() {
            segments.push(Segment { name, call: Some(call), launches: Vec::new() });
        }
        segments[at].launches.push((number, rest));
    }
    let mut items: Vec<Item> = Vec::new();
    for segment in segments {
        let Some(call) = segment.call else {
            let (launch, label) = segment.launches[0];
            items.push(Item::Launch { launch, label: label.into() });
            continue;
        };
        let same = items.iter_mut().find_map(|item| match item {
            Item::Function { name, calls, launches }
                if *name == segment.name && segment.is_like(launches, program) =>
            {
                Some(calls)
            }
            _ => None,
        });
        match same {
            Some(calls) => calls.push(call),
            None => items.push(Item::Function {
                name: segment.name.into(),
                calls: vec![call],
                launches: segment.launches.iter().map(|(n, l)| (*n, (*l).to_owned())).collect(),
            }),
        }
    }
    items
}

/// The launches of one call, or one of the entry itself.
struct Segment<'a> {
    name: &'a str,
    call: Option<usize>,
    launches: Vec<(usize, &'a str)>,
}

impl Segment<'_> {
    fn is_like(&self, launches: &[(usize, String)], program: &Program) -> bool {
        let kernel = |launch: usize| program.launches[launch].kernel;
        self.launches.len() == launches.len()
            && self
                .launches
                .iter()
                .zip(launches)
                .all(|((a, x), (b, y))| x == y && kernel(*a) == kernel(*b))
    }
}

/// Splits `layer.3/mlp.down linear` into function, number of the call, and the rest.
fn call(label: &str) -> Option<(&str, usize, &str)> {
    let (call, rest) = label.split_once('/')?;
    let (name, number) = call.rsplit_once('.')?;
    Some((name, number.parse().ok()?, rest)).filter(|_| !name.is_empty())
}

/// Numbers as ranges: `0-4, 7`.
pub(super) fn ranges(numbers: &[usize]) -> String {
    let mut out: Vec<(usize, usize)> = Vec::new();
    for n in numbers {
        match out.last_mut() {
            Some((_, end)) if *end + 1 == *n => *end = *n,
            _ => out.push((*n, *n)),
        }
    }
    let shown = |(a, b): &(usize, usize)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    out.iter().map(shown).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use ir::Launch;

    use super::*;

    #[test]
    fn calls_that_are_alike_are_folded() {
        let launch =
            |(kernel, label): (u32, &str)| Launch { kernel, args: Vec::new(), label: label.into() };
        let launches = [
            (0, "embed gather"),
            (1, "layer.0/norm rms_norm"),
            (4, "rotary fused"),
            (2, "layer.0/mlp linear"),
            (1, "layer.1/norm rms_norm"),
            (2, "layer.1/mlp linear"),
            (1, "layer.2/norm rms_norm"),
            (1, "layer.3/norm rms_norm"),
            (2, "layer.3/mlp linear"),
            (3, "/head/MatMul linear"),
        ];
        let launches = launches.into_iter().map(launch).collect();
        let items = outline(&Program { launches, ..Program::default() });
        let shown: Vec<String> = items
            .iter()
            .map(|item| match item {
                Item::Launch { launch, label } => format!("{launch} {label}"),
                Item::Function { name, calls, launches } => {
                    format!("{name} x {} ({}) of {}", calls.len(), ranges(calls), launches.len())
                }
            })
            .collect();
        assert_eq!(
            shown,
            [
                "0 embed gather",
                "layer x 3 (0-1, 3) of 2",
                "2 rotary fused",
                "layer x 1 (2) of 1",
                "9 /head/MatMul linear"
            ]
        );
    }
}
