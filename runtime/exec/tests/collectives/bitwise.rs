//! Results of ranks that are threads, bit for bit, whatever the lengths, groups, shards and delays.

use std::{thread, time::Duration};

use brolly_exec::collectives::{
    CollectiveError, Group, Mesh, Options, Reduce, Shards, World, run_threads,
};
use ir::DType;
use proptest::prelude::*;

use crate::reference::{REDUCTIONS, ragged, random, reduce, shard, vector};

/// Runs `body` as each rank and returns what all return.
pub(crate) fn run<R: Send>(
    ranks: usize,
    body: impl Fn(&World) -> Result<R, CollectiveError> + Sync,
) -> Vec<R> {
    let results = run_threads(ranks, &Options::default(), body);
    results.into_iter().map(|result| result.unwrap()).collect()
}

/// What every rank's `all_reduce` and its spellings give; they have to give the same.
fn reductions(
    group: &Group,
    (op, dtype): (Reduce, DType),
    own: &[u8],
    shards: &Shards,
) -> Result<Vec<u8>, CollectiveError> {
    let mut whole = own.to_vec();
    group.all_reduce(op, dtype, &mut whole)?;
    let mut part = shard(shards, group.index(), dtype, own);
    group.reduce_scatter(op, dtype, shards, own, &mut part)?;
    let mut gathered = vec![0xaa; own.len()];
    group.all_gather(dtype, shards, &part, &mut gathered)?;
    assert_eq!(gathered, whole, "reduce_scatter and all_gather");
    let mut in_place = own.to_vec();
    let turn = group.turn()?;
    turn.reduce_scatter_in_place(op, dtype, shards, &mut in_place)?;
    turn.all_gather_in_place(dtype, shards, &mut in_place)?;
    assert_eq!(in_place, whole, "in place");
    Ok(whole)
}

fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..40, 1000usize..3000, 16_000usize..40_000]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn reductions_are_those_of_the_reference(
        ranks in prop::sample::select(vec![1usize, 2, 3, 4, 8]),
        (elements, seed) in (lengths(), any::<u64>()),
        (kind, which) in (0..REDUCTIONS.len(), 0usize..3),
        is_slow in any::<bool>(),
    ) {
        let (dtype, ops) = REDUCTIONS[kind];
        let op = ops[which % ops.len()];
        let vectors: Vec<Vec<u8>> =
            (0..ranks).map(|rank| vector(seed, rank, dtype, elements)).collect();
        let shards = ragged(seed, elements, ranks);
        let expected = reduce(op, dtype, &vectors);
        let results = run(ranks, |world| {
            if is_slow {
                let delay_us = random(seed, world.rank(), 7) % 3000;
                thread::sleep(Duration::from_micros(delay_us));
            }
            reductions(&world.all(), (op, dtype), &vectors[world.rank()], &shards)
        });
        for result in results {
            prop_assert_eq!(&result, &expected);
        }
    }

    #[test]
    fn groups_of_a_mesh_reduce_apart(
        sizes in prop::sample::select(vec![[2usize, 2, 2], [4, 2, 1], [1, 3, 2], [2, 1, 4]]),
        axes in prop::sample::subsequence(vec!["data", "pipeline", "tensor"], 0..=3),
        (elements, seed) in (lengths(), any::<u64>()),
    ) {
        let mesh = Mesh::new(&[("data", sizes[0]), ("pipeline", sizes[1]), ("tensor", sizes[2])])?;
        let ranks = mesh.ranks();
        let vectors: Vec<Vec<u8>> =
            (0..ranks).map(|rank| vector(seed, rank, DType::F32, elements)).collect();
        let results = run(ranks, |world| {
            let group = world.group(&mesh, &axes)?;
            let shards = Shards::even(elements, group.size());
            reductions(&group, (Reduce::Sum, DType::F32), &vectors[world.rank()], &shards)
        });
        for (rank, result) in results.iter().enumerate() {
            let members = mesh.members(rank, &axes)?;
            let parts: Vec<Vec<u8>> = members.iter().map(|&rank| vectors[rank].clone()).collect();
            prop_assert_eq!(result, &reduce(Reduce::Sum, DType::F32, &parts));
        }
    }

    #[test]
    fn all_to_all_transposes(
        ranks in prop::sample::select(vec![1usize, 2, 3, 4]),
        (most, seed) in (prop_oneof![0usize..5, 20_000usize..40_000], any::<u64>()),
    ) {
        let count = |from: usize, to: usize| {
            usize::try_from(random(seed, from, to)).unwrap() % (most + 1)
        };
        let outgoing = |from: usize| {
            Shards::of(&(0..ranks).map(|to| count(from, to)).collect::<Vec<_>>()).unwrap()
        };
        let incoming = |to: usize| {
            Shards::of(&(0..ranks).map(|from| count(from, to)).collect::<Vec<_>>()).unwrap()
        };
        let data = |rank: usize| vector(seed, rank, DType::Bf16, outgoing(rank).elements());
        let results = run(ranks, |world| {
            let (sent, received) = (outgoing(world.rank()), incoming(world.rank()));
            let mut output = vec![0; received.elements() * 2];
            let input = data(world.rank());
            world.all().all_to_all(DType::Bf16, (&sent, &input), (&received, &mut output))?;
            Ok(output)
        });
        for (to, result) in results.iter().enumerate() {
            let parts = (0..ranks).map(|from| shard(&outgoing(from), to, DType::Bf16, &data(from)));
            prop_assert_eq!(result, &parts.collect::<Vec<_>>().concat());
        }
    }
}

#[test]
fn started_collectives_give_the_same_beside_others() {
    let (ranks, elements) = (4, 50_000);
    let data = |rank: usize, round: u64| vector(round, rank, DType::F32, elements);
    let results = run(ranks, |world| {
        let group = world.all();
        let mut results = Vec::new();
        for round in 0..4 {
            let mut owned = data(world.rank(), round);
            let started = group.start(move |turn| {
                turn.all_reduce(Reduce::Sum, DType::F32, &mut owned)?;
                Ok(owned)
            });
            let mut borrowed = data(world.rank(), round + 10);
            let lent = &mut borrowed;
            group.overlap(|overlap| {
                let handle =
                    overlap.start(move |turn| turn.all_reduce(Reduce::Max, DType::F32, lent));
                thread::sleep(Duration::from_micros(random(round, world.rank(), 1) % 2000));
                handle.wait()
            })?;
            // Its turn comes after both, though nobody has waited for the first.
            let mut now = data(world.rank(), round + 20);
            group.all_reduce(Reduce::Sum, DType::F32, &mut now)?;
            results.extend([started.wait()?, borrowed, now]);
        }
        Ok(results)
    });
    for round in 0..4usize {
        let vectors = |plus: u64| -> Vec<Vec<u8>> {
            (0..ranks).map(|rank| data(rank, round as u64 + plus)).collect()
        };
        for result in &results {
            let sum = |plus| reduce(Reduce::Sum, DType::F32, &vectors(plus));
            assert_eq!(result[3 * round], sum(0));
            assert_eq!(result[3 * round + 1], reduce(Reduce::Max, DType::F32, &vectors(10)));
            assert_eq!(result[3 * round + 2], sum(20));
        }
    }
}

#[test]
fn groups_do_not_wait_for_each_other() {
    let mesh = Mesh::new(&[("data", 2), ("tensor", 2)]).unwrap();
    let sums = run(4, |world| {
        let groups = [world.group(&mesh, &["data"])?, world.group(&mesh, &["tensor"])?];
        let reduce_on = |group: &Group| {
            let mut value = 1i32.to_ne_bytes();
            group.start(move |turn| {
                turn.all_reduce(Reduce::Sum, DType::I32, &mut value)?;
                Ok(i32::from_ne_bytes(value))
            })
        };
        // Half of the ranks start them in the other order.
        let first = world.rank() % 2;
        let [a, b] = [&groups[first], &groups[1 - first]].map(reduce_on);
        Ok(a.wait()? + b.wait()?)
    });
    assert_eq!(sums, [4; 4]);
}

#[test]
fn a_root_gives_what_it_has() {
    for bytes in [0, 5, 200_000] {
        for root in 0..3 {
            let results = run(3, |world| {
                let mut data = vector(1, world.rank(), DType::U8, bytes);
                world.all().broadcast(root, &mut data)?;
                Ok(data)
            });
            assert_eq!(results, vec![vector(1, root, DType::U8, bytes); 3]);
        }
    }
}
