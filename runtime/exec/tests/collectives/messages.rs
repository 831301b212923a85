//! Messages between two ranks, and what is refused before anything is sent.

use brolly_exec::collectives::{CollectiveError, Mesh, Options, Reduce, Shards, run_threads};
use ir::DType;

use crate::{bitwise::run, reference::vector};

#[test]
fn both_may_send_first() {
    for bytes in [0, 1, 300_000] {
        let results = run(2, |world| {
            let (group, other) = (world.all(), 1 - world.rank());
            let mut data = vec![0; bytes];
            group.send(other, &vector(3, world.rank(), DType::U8, bytes))?;
            group.recv(other, &mut data)?;
            Ok(data)
        });
        assert_eq!(results[0], vector(3, 1, DType::U8, bytes));
        assert_eq!(results[1], vector(3, 0, DType::U8, bytes));
    }
}

#[test]
fn messages_keep_their_order_whatever_is_received_first() {
    let results = run(3, |world| {
        let group = world.all();
        if world.rank() > 0 {
            for number in 0..10u8 {
                group.send(0, &[number, u8::try_from(world.rank()).unwrap()])?;
            }
            return Ok(Vec::new());
        }
        let mut expected = Vec::new();
        for _ in 0..10 {
            expected.push(group.expect(1)?);
            expected.push(group.expect(2)?);
        }
        let mut seen = vec![[0; 2]; 20];
        for (index, message) in expected.into_iter().enumerate().rev() {
            message.wait(&mut seen[index])?;
        }
        Ok(seen)
    });
    for (index, message) in results[0].iter().enumerate() {
        assert_eq!(usize::from(message[0]), index / 2);
        assert_eq!(usize::from(message[1]), 1 + index % 2);
    }
}

#[test]
fn a_pipeline_passes_values_on() {
    let results = run(4, |world| {
        let (group, rank) = (world.all(), world.rank());
        let mut value = [1u8];
        for _ in 0..50 {
            if rank > 0 {
                group.recv(rank - 1, &mut value)?;
            }
            value[0] = value[0].wrapping_mul(2);
            if rank < 3 {
                group.send(rank + 1, &value)?;
            }
            value = [1];
        }
        group.barrier()?;
        Ok(group.index())
    });
    assert_eq!(results, [0, 1, 2, 3]);
}

#[test]
fn bad_arguments_are_refused_and_harm_nothing() {
    run(2, |world| {
        let group = world.all();
        let message = |result: Result<(), CollectiveError>| match result {
            Err(CollectiveError::Usage { op, reason }) => format!("{op}: {reason}"),
            other => panic!("{other:?}"),
        };
        let (sum, even) = (Reduce::Sum, Shards::even(4, 2));
        let mut data = [0u8; 7];
        let text = message(group.all_reduce(sum, DType::F32, &mut data));
        assert_eq!(text, "all_reduce: data has 7 bytes, which is not 1 x f32");
        let text = message(group.all_reduce(Reduce::And, DType::F32, &mut data[..4]));
        assert!(text.contains("no and of f32"), "{text}");
        let text = message(group.all_reduce(sum, DType::F8E4M3, &mut data));
        assert!(text.contains("no sum of f8e4m3"), "{text}");
        let text = message(group.reduce_scatter(sum, DType::U8, &even, &[0; 4], &mut data));
        assert!(text.contains("output has 7 bytes"), "{text}");
        let three = Shards::even(4, 3);
        let text = message(group.all_gather(DType::U8, &three, &[0; 2], &mut data[..4]));
        assert!(text.contains("3 shards for 2 members"), "{text}");
        let huge = Shards::of(&[usize::MAX / 2, 1]).unwrap();
        message(group.turn()?.all_gather_in_place(DType::F32, &huge, &mut data));
        let text = message(group.broadcast(2, &mut data));
        assert!(text.contains("member 2 is not one of 2"), "{text}");
        message(group.send(world.rank(), &data));
        message(group.recv(9, &mut data));
        let turn = group.turn()?;
        let text = message(group.barrier());
        assert!(text.contains("has the turn"), "{text}");
        drop(turn);
        let mesh = Mesh::new(&[("data", 3)])?;
        let text = world.group(&mesh, &["data"]).unwrap_err().to_string();
        assert!(text.contains("want 3 ranks, and the job has 2"), "{text}");
        assert!(world.agree("all", &[0; 65]).is_err());
        group.barrier()
    });
}

#[test]
fn ranks_that_name_each_other_are_a_group() {
    let sums = run_threads(4, &Options::default(), |world| {
        let own = [world.rank() as f32];
        let mut sum = own;
        let refused = |ranks: &[usize]| world.group_of_ranks("ends", ranks).is_err();
        assert!(refused(&[3, 0]) && refused(&[0, 4]) && refused(&[]) && refused(&[0, 0, 3]));
        if [0, 3].contains(&world.rank()) {
            let ends = world.group_of_ranks("ends", &[0, 3])?;
            assert_eq!(ends.members(), [0, 3]);
            ends.all_reduce(Reduce::Sum, DType::F32, bytemuck::cast_slice_mut(&mut sum))?;
        } else {
            assert!(refused(&[0, 3]), "it is not among them");
        }
        Ok::<f32, CollectiveError>(sum[0])
    });
    let sums: Vec<f32> = sums.into_iter().map(Result::unwrap).collect();
    assert_eq!(sums, [3.0, 1.0, 2.0, 3.0]);
}

#[test]
fn ranks_that_hold_something_else_are_named() {
    let texts = |ranks: usize, odd: &[usize]| -> Vec<String> {
        let results = run_threads(ranks, &Options::default(), |world| {
            let hash = if odd.contains(&world.rank()) { b"other" } else { b"usual" };
            world.agree("the schedule", hash)
        });
        results.into_iter().map(|r| r.map_or_else(|e| e.to_string(), |()| "agree".into())).collect()
    };
    assert_eq!(texts(4, &[]), ["agree"; 4]);
    for text in texts(4, &[2]) {
        assert!(text.starts_with("the schedule of rank 2 differs from the other ranks'"), "{text}");
    }
    for text in texts(8, &[1, 4, 7]) {
        assert!(text.starts_with("the schedule of ranks 1, 4 and 7 differ"), "{text}");
    }
    // With no majority, the first rank is right.
    for text in texts(2, &[1]) {
        assert!(text.contains("of rank 1 differs"), "{text}");
    }
}
