//! Schedules, at random out of the whole space: of every family of products, the same bits.

use ir::Target;

use super::{Draw, Runner, Subject, families::product, rounds, routing, subject::Run};
use crate::{
    Codegen, Isa,
    lower::{grouped, linear},
    schedule::{AXES, Entry, Family, Schedule, Tuning},
};

/// A schedule that the family can have, with some sizes left to the default.
fn schedule(family: Family, draw: &mut Draw) -> Schedule {
    loop {
        let mut schedule = Schedule::default();
        for axis in AXES.iter().filter(|axis| axis.applies(family)) {
            if draw.coin() {
                let choices: Vec<Schedule> = axis.around(schedule).collect();
                schedule = draw.pick(&choices);
            }
        }
        if schedule.check(family, &Isa::x86_64_v3()).is_ok() {
            return schedule;
        }
    }
}

#[test]
fn fuzz_every_schedule_gives_the_same_bits() {
    rounds(3, |draw| {
        let mut missing = Family::ALL.to_vec();
        while !missing.is_empty() {
            let op = draw.pick(&["linear", "gated_linear", "quantized_linear", "grouped_linear"]);
            let subject = match op {
                "grouped_linear" => routing::grouped(op, draw),
                _ => product(op, draw),
            };
            let spec = subject.spec(draw);
            let product = match op {
                "grouped_linear" => grouped::product(&spec),
                _ => linear::product(&spec),
            };
            let product = product.unwrap().0;
            let family = Family::of(&product);
            if missing.contains(&family) {
                missing.retain(|f| *f != family);
                check(&subject, (family, product.n, product.k), draw);
            }
        }
    });
}

fn check(subject: &Subject, (family, n, k): (Family, u64, u64), draw: &mut Draw) {
    let (spec, target) = (subject.spec(draw), Target::x86_64_v3());
    let schedules: Vec<Schedule> = (0..4).map(|_| schedule(family, draw)).collect();
    let tuned = |schedule: Schedule| {
        let entry = Entry { schedule, ..Entry::of(&target, family, n, k) };
        let codegen = Codegen::new(target.clone()).with_tuning(Tuning { entries: vec![entry] });
        Runner::by(&codegen, vec![spec.clone()])
    };
    let runners: Vec<Runner> =
        [Schedule::default()].iter().chain(&schedules).map(|s| tuned(*s)).collect();
    let n = subject.count();
    let mut batches = subject.batches(n, draw);
    batches.push((0..n).collect());
    for units in batches {
        let mut results = runners.iter().map(|runner| {
            let run: &Run<'_> = &|args, env, share| runner.run_shared(0, args, env, share);
            subject.run(run, &units, 1, draw)
        });
        let wanted = results.next();
        for (schedule, got) in schedules.iter().zip(results) {
            assert!(Some(got) == wanted, "{family:?} {schedule:?}: {} rows", units.len());
        }
    }
}
