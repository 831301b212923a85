//! The order of samples is a function of data and seed; steps, ranks and restarts do not change it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Three sources with rows that name themselves: source in the first token, row in the second.
fn sources(folder: &Folder) -> Dataset {
    let entries = [("a", 7usize, 0.5), ("b", 4, 0.3), ("c", 20, 0.2)];
    let entries: Vec<(std::path::PathBuf, f64)> = entries
        .iter()
        .enumerate()
        .map(|(source, (name, rows, weight))| {
            let ids = (0..*rows).flat_map(|row| [source as i64, row as i64]);
            let bytes = npy(1, "<u2", *rows, 2, &ids.collect::<Vec<_>>());
            (folder.write(&format!("{name}.npy"), &bytes), *weight)
        })
        .collect();
    folder.open(&blend(&entries, 2)).unwrap()
}

/// A source of shuffled documents, one a row.
fn shuffled(folder: &Folder) -> Dataset {
    let lines: String =
        (0..50).map(|i| format!("{{\"text\": \"{}\"}}\n", "a".repeat(i + 1))).collect();
    let path = folder.write("a.jsonl", lines.as_bytes());
    let mut settings = config(&path, Format::Text, 3);
    settings.shuffle = true;
    folder.open(&settings).unwrap()
}

/// The batches of a step, rank by rank, micro-step by micro-step.
fn batches(step: &Step<'_>, shape: BatchShape) -> Vec<Batch> {
    let ranks = 0..shape.data_ranks;
    let each = ranks.flat_map(|rank| (0..shape.grad_accum).map(move |micro| (rank, micro)));
    each.map(|(rank, micro)| step.batch(rank, micro).unwrap()).collect()
}

fn shape() -> impl Strategy<Value = BatchShape> {
    (1..4usize, 1..4usize, 1..3usize).prop_map(|(micro_batch, data_ranks, grad_accum)| BatchShape {
        micro_batch,
        data_ranks,
        grad_accum,
    })
}

#[test]
fn epochs_take_every_row_once_in_another_order() {
    let folder = Folder::new("epochs");
    let data = shuffled(&folder);
    let rows = usize::try_from(data.rows()).unwrap();
    let shape = BatchShape { micro_batch: rows, data_ranks: 1, grad_accum: 1 };
    let mut at = data.start();
    let mut orders = Vec::new();
    for epoch in 0..3 {
        let step = data.step(&at, shape).unwrap();
        assert!(step.samples().iter().flatten().all(|sample| sample.epoch == epoch));
        let order: Vec<u64> = step.samples().iter().flatten().map(|sample| sample.row).collect();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..data.rows()).collect::<Vec<_>>());
        orders.push(order);
        at = step.next().clone();
    }
    assert!(orders[0] != orders[1] && orders[1] != orders[2]);
}

#[test]
fn target_counts_are_of_all_ranks() {
    let folder = Folder::new("counts");
    let data = shuffled(&folder);
    let shape = BatchShape { micro_batch: 2, data_ranks: 3, grad_accum: 2 };
    let step = data.step(&data.start(), shape).unwrap();
    let counted: u64 = batches(&step, shape).iter().map(Batch::target_count).sum();
    assert_eq!(step.target_count(), counted);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_mesh_and_any_restart_give_one_sequence(
        shapes in prop::collection::vec(shape(), 1..8),
        is_blend: bool,
    ) {
        let folder = Folder::new("resume");
        let data = if is_blend { sources(&folder) } else { shuffled(&folder) };
        let one = BatchShape { micro_batch: 1, data_ranks: 1, grad_accum: 1 };
        let (mut at, mut single) = (data.start(), data.start());
        for shape in shapes {
            let step = data.step(&at, shape).unwrap();
            let mut tokens = Vec::new();
            for wanted in step.samples() {
                let alone = data.step(&single, one).unwrap();
                prop_assert_eq!(&alone.samples()[0], wanted);
                tokens.extend(alone.batch(0, 0).unwrap().tokens);
                single = alone.next().clone();
            }
            let joined: Vec<i32> =
                batches(&step, shape).into_iter().flat_map(|batch| batch.tokens).collect();
            prop_assert_eq!(joined, tokens);
            // As a checkpoint would.
            let json = serde_json::to_string(step.next()).unwrap();
            at = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(&at, &single);
        }
    }

    #[test]
    fn blends_keep_their_ratio_and_go_through_each_source(steps in 1..60usize) {
        let folder = Folder::new("ratio");
        let data = sources(&folder);
        let shape = BatchShape { micro_batch: steps, data_ranks: 1, grad_accum: 1 };
        let step = data.step(&data.start(), shape).unwrap();
        let mut counts = BTreeMap::new();
        for (n, sample) in (1u32..).zip(step.samples().iter().flatten()) {
            let count: &mut u64 = counts.entry(sample.source).or_default();
            let rows = [7, 4, 20][sample.source];
            prop_assert_eq!((sample.epoch, sample.row), (*count / rows, *count % rows));
            *count += 1;
            for (source, share) in [0.5, 0.3, 0.2].into_iter().enumerate() {
                let count = counts.get(&source).copied().unwrap_or(0);
                prop_assert!((count as f64 - share * f64::from(n)).abs() < 1.0);
            }
        }
    }
}
