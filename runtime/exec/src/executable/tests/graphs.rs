//! Graphs of a GPU: of the sizes that were used last, and of states that are there.

use std::sync::Arc;

use super::bytes;
use crate::{
    Executable, States,
    testing::{self, StandIn},
};

/// Elements of the state, of which the last is counted up.
const M: i64 = 3;

struct OnGpu {
    f: Executable,
    driver: Arc<StandIn>,
}

impl OnGpu {
    fn new(file: &str) -> OnGpu {
        let (model, driver) = testing::on_gpu(file, vec![testing::program("f", 2)]);
        OnGpu { f: Executable::load(&model, "f", &[("M", M)]).unwrap(), driver }
    }

    fn states(&self) -> States {
        let mut states = States::on(self.f.model().device());
        states.add(self.f.program(), &[("M", M)]).unwrap();
        states
    }

    /// Runs a size, whose results must be right; how often a graph was started for it.
    fn run(&mut self, states: &mut States, n: i64) -> usize {
        let (_, before) = self.driver.graphs();
        let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
        self.f.run(states, &[("N", n)], &[("x", bytes(&x))]).unwrap();
        let want: Vec<f32> = x.iter().map(|x| x + 5.0).collect();
        assert_eq!(self.f.output::<f32>("y").unwrap(), want);
        self.driver.graphs().1 - before
    }
}

fn counted(states: &States) -> i64 {
    let memory = states.read("memory").unwrap().unwrap();
    let counts: Vec<i64> = bytemuck::pod_collect_to_vec(&memory);
    assert_eq!(counts[..2], [0, 0]);
    counts[2]
}

#[test]
fn graphs_of_the_last_sixty_four_sizes_are_kept() {
    let mut gpu = OnGpu::new("graphs");
    let mut states = gpu.states();
    let mut total = 0;
    for n in 0..=64 {
        let replays = [0; 3].map(|_| gpu.run(&mut states, n));
        assert_eq!(replays, [0, 1, 1], "the second run of a size is recorded");
        total += 3 * (n + 1);
        assert_eq!(counted(&states), total);
    }
    assert_eq!(gpu.driver.graphs().0, 64, "the oldest of 65 went");
    // That which was used last stays, though it is the oldest.
    assert_eq!(gpu.run(&mut states, 1), 1);
    assert_eq!(gpu.run(&mut states, 0), 0, "it is recorded anew");
    assert_eq!(gpu.run(&mut states, 1), 1);
    assert_eq!(gpu.run(&mut states, 2), 0, "it made room");
    drop(gpu.f);
    assert_eq!(gpu.driver.graphs().0, 0);
}

#[test]
fn graphs_do_not_keep_states() {
    let mut gpu = OnGpu::new("kept");
    let alone = gpu.driver.allocated();
    let mut first = gpu.states();
    assert_eq!([0; 3].map(|_| gpu.run(&mut first, 7)), [0, 1, 1]);
    assert_eq!(gpu.driver.allocated(), alone + 8 * M as u64);
    drop(first);
    assert_eq!(gpu.driver.allocated(), alone, "nobody has them any more");
    let [mut one, mut two] = [gpu.states(), gpu.states()];
    assert_eq!(gpu.run(&mut one, 7), 0, "other states are another run");
    assert_eq!(gpu.driver.graphs().0, 0, "a graph of states that are gone goes");
    assert_eq!(gpu.run(&mut two, 7), 0);
    assert_eq!([gpu.run(&mut one, 7), gpu.run(&mut two, 7), gpu.run(&mut one, 7)], [1, 1, 1]);
    assert_eq!([counted(&one), counted(&two)], [3 * 8, 2 * 8]);
    assert_eq!(gpu.driver.graphs().0, 2);
}
