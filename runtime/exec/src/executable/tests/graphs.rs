//! Graphs of a GPU: of the sizes that were used last, and of states that are there.

use std::sync::Arc;

use super::bytes;
use crate::{
    Executable, Memory, States,
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
    fn run(&mut self, states: &mut States, n: i64) -> u64 {
        let before = self.driver.counts().replays;
        let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
        self.f.run(states, &[("N", n)], &[("x", bytes(&x))]).unwrap();
        let want: Vec<f32> = x.iter().map(|x| x + 5.0).collect();
        assert_eq!(self.f.output::<f32>("y").unwrap(), want);
        self.driver.counts().replays - before
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
    assert_eq!(gpu.driver.counts().graphs, 64, "the oldest of 65 went");
    // That which was used last stays, though it is the oldest.
    assert_eq!(gpu.run(&mut states, 1), 1);
    assert_eq!(gpu.run(&mut states, 0), 0, "it is recorded anew");
    assert_eq!(gpu.run(&mut states, 1), 1);
    assert_eq!(gpu.run(&mut states, 2), 0, "it made room");
    drop(gpu.f);
    assert_eq!(gpu.driver.counts().graphs, 0);
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
    assert_eq!(gpu.driver.counts().graphs, 0, "a graph of states that are gone goes");
    assert_eq!(gpu.run(&mut two, 7), 0);
    assert_eq!([gpu.run(&mut one, 7), gpu.run(&mut two, 7), gpu.run(&mut one, 7)], [1, 1, 1]);
    assert_eq!([counted(&one), counted(&two)], [3 * 8, 2 * 8]);
    assert_eq!(gpu.driver.counts().graphs, 2);
}

#[test]
fn a_run_is_one_copy_each_way_and_one_wait() {
    let mut gpu = OnGpu::new("copies");
    let mut states = gpu.states();
    for n in [5, 5, 5, 9, 5, 0] {
        let before = gpu.driver.counts();
        gpu.run(&mut states, n);
        let after = gpu.driver.counts();
        let copies = u64::from(n > 0);
        assert_eq!(after.uploads - before.uploads, copies, "{n}");
        assert_eq!(after.downloads - before.downloads, copies, "{n}");
        assert_eq!(after.waits - before.waits, 1, "{n}");
    }
    // What is left is not copied, also by what was recorded before.
    gpu.f.leave_outputs(&["y"]).unwrap();
    for replays in [0, 1, 1] {
        let before = gpu.driver.counts();
        gpu.f.run(&mut states, &[("N", 2)], &[("x", bytes(&[1.0, 2.0]))]).unwrap();
        let after = gpu.driver.counts();
        assert_eq!(after.downloads, before.downloads);
        assert_eq!(after.replays - before.replays, replays);
        assert!(gpu.f.output::<f32>("y").is_err());
    }
    let before = gpu.driver.counts();
    let rows = gpu.f.output_rows::<f32>("y", &[1, 0]).unwrap();
    assert_eq!(rows.concat(), [7.0, 6.0]);
    assert_eq!(gpu.driver.counts().waits - before.waits, 1, "for all rows");
}

#[test]
fn the_device_computes_beside_the_host() {
    let mut gpu = OnGpu::new("beside");
    let mut states = gpu.states();
    for n in [3i64, 3, 3] {
        let (x, driver) = ([1.0f32; 3], gpu.driver.clone());
        let (before, mut times) = (driver.counts(), 0);
        // The stand-in works when it is waited for.
        let mut beside = || {
            times += 1;
            assert_eq!(driver.counts().launches, before.launches);
            assert_eq!(driver.counts().waits, before.waits);
        };
        gpu.f.run_beside(&mut states, &[("N", n)], &[("x", bytes(&x))], &mut beside).unwrap();
        assert_eq!(times, 1);
        assert_eq!(gpu.driver.counts().launches - before.launches, 3);
        assert_eq!(gpu.f.output::<f32>("y").unwrap(), [6.0; 3]);
    }
}

#[test]
fn pinned_memory_is_predicted() {
    let gpu = OnGpu::new("pinned");
    let model = gpu.f.model();
    let manifest = model.artifact().manifest();
    let predicted = Memory::predict(manifest, &["f"], 1, &[("M", M)]).unwrap();
    let measured = Memory::measure(&[&gpu.f], &gpu.states());
    // An input and an output of 64 elements.
    assert_eq!((predicted.pinned_bytes, measured.pinned_bytes), (512, 512));
    assert_eq!(predicted.total(), Memory { pinned_bytes: 0, ..predicted }.total());
}
