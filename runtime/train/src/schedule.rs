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

    /// What a rank asks of its device, or waits for, where stages are on linked GPUs.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// Waits on the host until a message was announced, and posts its receipt.
        Receive(usize, usize),
        /// Waits for what was received last along the first channel, if it receives there, and
        /// until the device has sent what the program gave last along the second.
        Run(usize, usize),
        /// Announces a message, and posts it.
        Send(usize, usize),
        /// Behind the first of a channel, waits on the host for the first receipt to be posted:
        /// that is when the two sides connect.
        Connect(usize),
    }

    /// Channel 0 goes on, channel 1 back.
    fn steps(stage: usize, stages: usize, micro_batches: usize) -> Vec<Step> {
        let (is_first, is_last) = (stage == 0, stage + 1 == stages);
        let of = |turn| match turn {
            Turn::Forward(i) => [
                (!is_first).then_some(Step::Receive(0, i)),
                // The last one computes its backward too.
                Some(Step::Run(0, usize::from(is_last))),
                (!is_last).then_some(Step::Send(0, i)),
                (!is_last && i == 0).then_some(Step::Connect(0)),
            ],
            Turn::Backward(i) => [
                (!is_last).then_some(Step::Receive(1, i)),
                (!is_last).then_some(Step::Run(1, 1)),
                (!is_first).then_some(Step::Send(1, i)),
                (!is_first && i == 0).then_some(Step::Connect(1)),
            ],
        };
        turns(stage, stages, micro_batches).into_iter().flat_map(of).flatten().collect()
    }

    /// Each channel of a stage is a stream, whose work ends in order: a message when both sides
    /// have come to it.
    #[test]
    fn no_device_waits_for_ever() {
        for (stages, micro_batches) in (2..=6).flat_map(|s| (1..=9).map(move |m| (s, m))) {
            let mut left: Vec<VecDeque<Step>> =
                (0..stages).map(|s| steps(s, stages, micro_batches).into()).collect();
            // Of each stage and channel: whether it is a send, and the micro-batch.
            let mut streams = vec![[VecDeque::<(bool, usize)>::new(), VecDeque::new()]; stages];
            let mut announced = vec![[0; 2]; stages];
            let mut is_connected = vec![[false; 2]; stages];
            while left.iter().any(|steps| !steps.is_empty()) {
                let mut is_stuck = true;
                for stage in 0..stages {
                    let next = |channel: usize| if channel == 0 { stage + 1 } else { stage - 1 };
                    let pending = |channel: usize, is_send: bool| {
                        streams[stage][channel].iter().any(|(of, _)| *of == is_send)
                    };
                    match left[stage].front() {
                        Some(Step::Receive(channel, i)) if announced[stage][*channel] > *i => {
                            streams[stage][*channel].push_back((false, *i));
                            is_connected[stage][*channel] = true;
                        }
                        Some(Step::Connect(channel)) if is_connected[next(*channel)][*channel] => {}
                        Some(Step::Run(from, to))
                            if !pending(*from, false) && !pending(*to, true) => {}
                        Some(Step::Send(channel, i)) => {
                            streams[stage][*channel].push_back((true, *i));
                            announced[next(*channel)][*channel] = i + 1;
                        }
                        _ => continue,
                    }
                    left[stage].pop_front();
                    is_stuck = false;
                }
                for (stage, channel) in (0..stages).flat_map(|s| [(s, 0), (s, 1)]) {
                    let Some((true, i)) = streams[stage][channel].front().copied() else {
                        continue;
                    };
                    let to = if channel == 0 { stage + 1 } else { stage - 1 };
                    if streams[to][channel].front() == Some(&(false, i)) {
                        streams[stage][channel].pop_front();
                        streams[to][channel].pop_front();
                        is_stuck = false;
                    }
                }
                assert!(!is_stuck, "{stages} stages, {micro_batches} micro-batches: {left:?}");
            }
        }
    }
}
