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

    /// What a stage does of its turns with its neighbours: waits for a message, or sends one, by
    /// the queue that it goes through and the number of the micro-batch.
    #[derive(Clone, Copy)]
    enum Meeting {
        Receive(usize, usize),
        Send(usize, usize),
    }

    fn meetings(stage: usize, stages: usize, micro_batches: usize) -> Vec<Meeting> {
        // Queues by who reads them: of hidden states, then of cotangents.
        let (is_first, is_last) = (stage == 0, stage + 1 == stages);
        let of = |turn| match turn {
            Turn::Forward(i) => [
                (!is_first).then_some(Meeting::Receive(stage, i)),
                (!is_last).then_some(Meeting::Send(stage + 1, i)),
            ],
            Turn::Backward(i) => [
                (!is_last).then_some(Meeting::Receive(stages + stage, i)),
                (!is_first).then(|| Meeting::Send(stages + stage - 1, i)),
            ],
        };
        turns(stage, stages, micro_batches).into_iter().flat_map(of).flatten().collect()
    }

    /// With room for one message that waits; every one is of the micro-batch that is waited for.
    #[test]
    fn no_stage_waits_for_ever() {
        for stages in 2..=5 {
            for micro_batches in 1..=9 {
                let mut left: Vec<VecDeque<Meeting>> =
                    (0..stages).map(|s| meetings(s, stages, micro_batches).into()).collect();
                let mut queues = vec![None; 2 * stages];
                while left.iter().any(|meetings| !meetings.is_empty()) {
                    let mut is_stuck = true;
                    for own in &mut left {
                        match own.front() {
                            Some(Meeting::Receive(queue, i)) if queues[*queue].is_some() => {
                                assert_eq!(queues[*queue].take(), Some(*i));
                            }
                            Some(Meeting::Send(queue, i)) if queues[*queue].is_none() => {
                                queues[*queue] = Some(*i);
                            }
                            _ => continue,
                        }
                        own.pop_front();
                        is_stuck = false;
                    }
                    assert!(!is_stuck, "{stages} stages, {micro_batches} micro-batches");
                }
                assert!(queues.iter().all(Option::is_none));
            }
        }
    }
}
