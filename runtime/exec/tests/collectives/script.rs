//! A fixed job of many collectives, whose results every transport has to give alike.

use std::{thread, time::Duration};

use brolly_exec::collectives::{CollectiveError, Mesh, Shards, World};
use ir::DType;

use crate::reference::{REDUCTIONS, ragged, random, shard, vector};

/// Lengths below and above what is sent at once, and none.
const LENGTHS: [usize; 5] = [0, 1, 1000, 20_001, 70_003];

/// Runs it as one rank and returns the bytes of all results.
pub(crate) fn run(world: &World, is_slow: bool) -> Result<Vec<u8>, CollectiveError> {
    let (rank, ranks) = (world.rank(), world.ranks());
    let split = if ranks.is_multiple_of(2) { 2 } else { 1 };
    let mesh = Mesh::new(&[("data", ranks / split), ("tensor", split)])?;
    let groups = [world.all(), world.group(&mesh, &["data"])?, world.group(&mesh, &["tensor"])?];
    let mut results = Vec::new();
    world.agree("the script", b"version 1")?;
    for (step, elements) in LENGTHS.into_iter().enumerate() {
        world.set_step(step as u64 + 1);
        for (number, (dtype, ops)) in REDUCTIONS.iter().enumerate() {
            if is_slow {
                let delay_us = random(number as u64, rank, step) % 2000;
                thread::sleep(Duration::from_micros(delay_us));
            }
            let group = &groups[number % groups.len()];
            let shards = ragged(number as u64, elements, group.size());
            let data = vector(number as u64, rank, *dtype, elements);
            let mut sum = data.clone();
            let started = group.start({
                let (op, dtype) = (ops[0], *dtype);
                move |turn| {
                    turn.all_reduce(op, dtype, &mut sum)?;
                    Ok(sum)
                }
            });
            let mut part = shard(&shards, group.index(), *dtype, &data);
            let op = ops[ops.len() - 1];
            group.reduce_scatter(op, *dtype, &shards, &data, &mut part)?;
            let mut all = data;
            group.all_gather(*dtype, &shards, &part, &mut all)?;
            results.extend([started.wait()?, all].concat());
        }
        let (group, even) = (&groups[0], Shards::even(elements, ranks));
        let mut data = vector(50, rank, DType::U8, elements);
        group.broadcast(step % ranks, &mut data)?;
        if ranks > 1 {
            group.send((rank + 1) % ranks, &data)?;
            group.recv((rank + ranks - 1) % ranks, &mut data)?;
        }
        results.extend(&data);
        let counts: Vec<usize> = vec![even.range(rank).len(); ranks];
        let received = Shards::of(&counts).unwrap_or_else(|| Shards::even(0, ranks));
        let mut output = vec![0; received.elements()];
        let own = vector(60, rank, DType::U8, elements);
        group.all_to_all(DType::U8, (&even, &own), (&received, &mut output))?;
        results.extend(output);
        group.barrier()?;
    }
    Ok(results)
}
