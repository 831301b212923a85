//! What a stage of a pipeline does of the micro-batches of a step, and in which order.
//!
//! One forward, one backward: Narayanan et al. 2019, "PipeDream", with the flush at each step's end
//! of Narayanan et al. 2021, arXiv:2104.04473 (figure 4). A stage begins with as many forwards as
//! there are stages behind it, so that the first backward finds the last stage at work; then it
//! alternates, and what it keeps of micro-batches is never of more than the stages from it on.

/// A half of the work on a micro-batch, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Forward(usize),
    Backward(usize),
}

/// The turns of stage `stage` of `stages` in a step of so many micro-batches.
pub(crate) fn turns(stage: usize, stages: usize, micro_batches: usize) -> Vec<Turn> {
    let ahead = (stages - 1 - stage).min(micro_batches);
    let mut turns: Vec<Turn> = (0..ahead).map(Turn::Forward).collect();
    for forward in ahead..micro_batches {
        turns.extend([Turn::Forward(forward), Turn::Backward(forward - ahead)]);
    }
    turns.extend((micro_batches - ahead..micro_batches).map(Turn::Backward));
    turns
}

/// Of how many micro-batches a stage keeps what their backward reads, at most.
pub(crate) fn in_flight(stage: usize, stages: usize, micro_batches: usize) -> usize {
    (stages - stage).min(micro_batches).max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// `F0 B0`, as figures have it.
    fn told(stage: usize, stages: usize, micro_batches: usize) -> String {
        let name = |turn: Turn| match turn {
            Turn::Forward(i) => format!("F{i}"),
            Turn::Backward(i) => format!("B{i}"),
        };
        let names = turns(stage, stages, micro_batches).into_iter().map(name);
        names.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_order_is_the_published_one() {
        // Figure 4 of the paper from 2021, for its eight micro-batches.
        let want = [
            "F0 F1 F2 F3 B0 F4 B1 F5 B2 F6 B3 F7 B4 B5 B6 B7",
            "F0 F1 F2 B0 F3 B1 F4 B2 F5 B3 F6 B4 F7 B5 B6 B7",
            "F0 F1 B0 F2 B1 F3 B2 F4 B3 F5 B4 F6 B5 F7 B6 B7",
            "F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5 F6 B6 F7 B7",
        ];
        for (stage, want) in want.iter().enumerate() {
            assert_eq!(told(stage, 4, 8), *want, "stage {stage}");
            assert_eq!(told(stage, 4, 1), "F0 B0", "stage {stage}");
        }
        let few =
            ["F0 F1 F2 B0 B1 B2", "F0 F1 F2 B0 B1 B2", "F0 F1 B0 F2 B1 B2", "F0 B0 F1 B1 F2 B2"];
        for (stage, want) in few.iter().enumerate() {
            assert_eq!(told(stage, 4, 3), *want, "stage {stage}");
        }
    }

    #[test]
    fn a_stage_keeps_no_more_than_it_may() {
        for stages in 1..=6 {
            for (stage, micro_batches) in (0..stages).flat_map(|s| (1..=9).map(move |m| (s, m))) {
                let mut kept = 0usize;
                let mut most = 0;
                for turn in turns(stage, stages, micro_batches) {
                    match turn {
                        Turn::Forward(_) => kept += 1,
                        Turn::Backward(_) => kept -= 1,
                    }
                    most = most.max(kept);
                }
                assert_eq!(kept, 0);
                assert_eq!(most, in_flight(stage, stages, micro_batches), "{stage} of {stages}");
            }
        }
    }

    /// Stages hand over through queues. No step stops before its end, every message is of the
    /// micro-batch that is waited for, and no queue grows beyond the stages from its end on.
    #[test]
    fn no_stage_waits_for_ever() {
        for stages in 2..=5 {
            for micro_batches in 1..=9 {
                let mut left: Vec<VecDeque<Turn>> =
                    (0..stages).map(|s| turns(s, stages, micro_batches).into()).collect();
                // What has come to each stage from the one before, and from the one behind.
                let mut hidden = vec![VecDeque::new(); stages];
                let mut cotangents = vec![VecDeque::new(); stages];
                while left.iter().any(|turns| !turns.is_empty()) {
                    let mut is_stuck = true;
                    for stage in 0..stages {
                        let Some(turn) = left[stage].front().copied() else { continue };
                        let (queue, number, is_given) = match turn {
                            Turn::Forward(i) => (&mut hidden[stage], i, stage == 0),
                            Turn::Backward(i) => (&mut cotangents[stage], i, stage + 1 == stages),
                        };
                        if !is_given {
                            let Some(first) = queue.pop_front() else { continue };
                            assert_eq!(first, number, "stage {stage} of {stages}");
                        }
                        match turn {
                            Turn::Forward(i) if stage + 1 < stages => {
                                hidden[stage + 1].push_back(i)
                            }
                            Turn::Backward(i) if stage > 0 => cotangents[stage - 1].push_back(i),
                            _ => {}
                        }
                        left[stage].pop_front();
                        is_stuck = false;
                    }
                    assert!(!is_stuck, "{stages} stages, {micro_batches} micro-batches");
                    for (stage, (a, b)) in hidden.iter().zip(&cotangents).enumerate() {
                        assert!(a.len() <= stages + 1 - stage && b.len() <= stages - stage);
                    }
                }
            }
        }
    }
}
