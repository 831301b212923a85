//! The numeric contract at random, for every family: a row has the same bits on any number of
//! threads, alone, in any batch and in any chunk, and by any schedule.
//!
//! [`families`] makes cases of every operator that has a kernel; one that it does not know fails
//! the test. Seeds are fixed: `BROLLY_FUZZ_SEED` sets another, `BROLLY_FUZZ_SECONDS` goes on with
//! further ones. Whether results are right is what the other tests ask.

mod attention;
mod draw;
mod families;
mod routing;
mod schedules;
mod subject;

use std::cell::Cell;

use ir::{Attrs, DType, Tensor};

use self::{
    draw::{Draw, rounds},
    subject::{Subject, Units},
};
use super::run::{Case, Runner, noise};
use crate::lower::LOWERINGS;

/// Rows of a batch at most: beyond what products take directly.
const MOST: usize = 70;

#[test]
fn fuzz_rows_have_the_same_bits_in_every_batch_and_on_any_number_of_threads() {
    rounds(1, |draw| {
        let mut subjects: Vec<Subject> = Vec::new();
        for op in LOWERINGS.iter().flat_map(|family| family.ops()) {
            subjects.extend(families::cases(op, draw));
        }
        check(&subjects, draw);
    });
}

/// Compiles all together; then compares each with itself.
fn check(subjects: &[Subject], draw: &mut Draw) {
    let runner = Runner::new(subjects.iter().map(|s| s.spec(draw)).collect());
    for (i, subject) in subjects.iter().enumerate() {
        let run: &subject::Run<'_> = &|args, env, share| runner.run_shared(i, args, env, share);
        subject.check(run, draw).unwrap_or_else(|why| panic!("{why}"));
    }
}

/// What the comparison is worth: one bit of one element is enough, of a batch that is large, or of
/// the third launch, which is one on other threads.
#[test]
fn a_kernel_that_breaks_the_promise_is_found() {
    let x = noise(DType::F32, &[9, 40], 1);
    let case = Case::new("l2_normalize", Attrs::none(), &[&x]);
    let subject = Subject::rows(case, &[Some(0)], &[Some(0)]);
    let runner = Runner::new(vec![subject.spec(&mut Draw::new(1))]);
    let check = |breaks: fn(usize, usize) -> bool| {
        let launches = Cell::new(0);
        let run: &subject::Run<'_> = &|args, env, share| {
            let mut results = runner.run_shared(0, args, env, share);
            let mut bytes = results[0].to_bytes();
            launches.set(launches.get() + 1);
            if breaks(launches.get(), results[0].shape()[0]) {
                bytes[4] ^= 1;
            }
            results[0] = Tensor::from_bytes(DType::F32, results[0].shape(), bytes);
            results
        };
        subject.check(run, &mut Draw::new(1))
    };
    assert_eq!(check(|_, _| false), Ok(()));
    assert!(check(|_, rows| rows >= 5).unwrap_err().contains("result 0 of"));
    assert!(check(|launch, _| launch == 3).unwrap_err().contains("on 3 threads"));
}
