//! Rows against the documents that they were cut from.

use proptest::prelude::*;

use super::*;
use crate::data::{rows::Part, shard::Shard, shard::ShardWriter, token::Token};

/// A shard of documents, each token with whether it is learned.
fn shard(folder: &Folder, documents: &[Vec<(u32, bool)>]) -> Part {
    let key = blake3::hash(b"");
    let path = folder.path("a.tokens");
    let mut writer = ShardWriter::new(std::fs::File::create(&path).unwrap()).unwrap();
    for document in documents {
        let token = |(id, is_learned): &(u32, bool)| {
            let token = Token::new(*id);
            if *is_learned { token } else { token.ignored() }
        };
        let mut tokens: Vec<Token> = document.iter().map(token).collect();
        let last = tokens.last_mut().unwrap();
        *last = last.last();
        writer.write(&tokens).unwrap();
    }
    writer.finish(&key).unwrap();
    let watch = progress::Watch::nobody();
    Part::Shard(Shard::open(&path, &key, &watch).unwrap().unwrap())
}

fn all_rows(part: &Part, seq_len: usize) -> Vec<Batch> {
    let batch = |row| {
        let mut batch = Batch::new(seq_len);
        part.add_to(&mut batch, row, seq_len);
        batch
    };
    (0..part.rows(seq_len)).map(batch).collect()
}

#[test]
fn documents_are_cut_with_nothing_lost() {
    let folder = Folder::new("cut");
    let learned = |ids: std::ops::Range<u32>| ids.map(|id| (id, true)).collect::<Vec<_>>();
    let part = shard(&folder, &[learned(1..3), learned(11..18), learned(21..22)]);
    let rows = all_rows(&part, 4);
    let x = IGNORED;
    let tokens: Vec<&[i32]> = rows.iter().map(|row| &row.tokens[..]).collect();
    assert_eq!(tokens, [[1, 2, 11, 12], [13, 14, 15, 16], [17, 21, 0, 0]]);
    let targets: Vec<&[i32]> = rows.iter().map(|row| &row.targets[..]).collect();
    assert_eq!(targets, [[2, x, 12, 13], [14, 15, 16, 17], [x, x, x, x]]);
    let segments: Vec<&[i32]> = rows.iter().map(|row| &row.cu_seqlens[..]).collect();
    assert_eq!(segments, [&[0, 2, 4][..], &[0, 4], &[0, 1, 2, 4]]);
    let positions: Vec<&[i32]> = rows.iter().map(|row| &row.positions[..]).collect();
    assert_eq!(positions, [[0, 1, 0, 1], [0, 1, 2, 3], [0, 0, 0, 1]]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn packing_loses_nothing_and_keeps_order(
        documents in prop::collection::vec(
            prop::collection::vec((1..100u32, any::<bool>()), 1..30), 1..20),
        seq_len in 2..20usize,
    ) {
        let folder = Folder::new("packing");
        let part = shard(&folder, &documents);
        let rows = all_rows(&part, seq_len);
        let all: Vec<i32> = rows.iter().flat_map(|row| row.tokens.clone()).collect();
        let total: usize = documents.iter().map(Vec::len).sum();
        let wanted = documents.iter().flatten().map(|(id, _)| id.cast_signed());
        prop_assert_eq!(&all[..total], &wanted.collect::<Vec<_>>()[..]);
        prop_assert!(all.len() - total < seq_len && all[total..].iter().all(|id| *id == 0));

        // Every pair of neighbours is learned once, at its first token; nothing else is.
        let targets: Vec<i32> = rows.iter().flat_map(|row| row.targets.clone()).collect();
        let wanted = documents.iter().flat_map(|document| {
            let next = document[1..].iter();
            next.map(|(id, is_learned)| if *is_learned { id.cast_signed() } else { IGNORED })
                .chain([IGNORED])
        });
        prop_assert_eq!(&targets[..total], &wanted.collect::<Vec<_>>()[..]);
        prop_assert!(targets[total..].iter().all(|target| *target == IGNORED));

        for (row, batch) in rows.iter().enumerate() {
            prop_assert_eq!(batch.tokens.len(), seq_len);
            prop_assert_eq!(batch.target_count(), part.targets(row as u64, seq_len));
            prop_assert_eq!(batch.cu_seqlens.len() - 1, part.segments(row as u64, seq_len));
            prop_assert!(batch.cu_seqlens.is_sorted_by(|a, b| a < b));
            prop_assert_eq!(batch.cu_seqlens[0], 0);
            prop_assert_eq!(*batch.cu_seqlens.last().unwrap() as usize, seq_len);
            for segment in batch.cu_seqlens.windows(2) {
                let (start, end) = (segment[0] as usize, segment[1] as usize);
                let wanted: Vec<i32> = (0..segment[1] - segment[0]).collect();
                prop_assert_eq!(&batch.positions[start..end], &wanted[..]);
            }
        }
    }
}
