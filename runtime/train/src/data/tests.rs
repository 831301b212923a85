//! Whole data sets: packing, order, resuming, blends, and what is wrong with files.

mod order;
mod packing;

use super::*;
use crate::config::Format;
use testing::{Folder, blend, config, npy};

fn told(errors: &[DataError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn rows_of_tokens_are_dealt_rank_by_rank() {
    let folder = Folder::new("contract");
    let ids: Vec<i64> = (0..12).flat_map(|row| [row, row + 100, row + 200]).collect();
    let path = folder.write("a.npy", &npy(1, "<i4", 12, 3, &ids));
    let data = folder.open(&config(&path, Format::Tokens, 3)).unwrap();
    assert_eq!((data.rows(), data.documents(), data.max_segments_per_row()), (12, 12, 1));
    let shape = BatchShape { micro_batch: 1, data_ranks: 2, grad_accum: 2 };
    let first = data.step(&data.start(), shape).unwrap();
    assert_eq!(first.target_count(), 8);
    let second = data.step(first.next(), shape).unwrap();
    let row = |step: &Step<'_>, rank, micro| step.batch(rank, micro).unwrap().tokens[0];
    let rows = |step: &Step<'_>| [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(r, m)| row(step, r, m));
    assert_eq!((rows(&first), rows(&second)), ([0, 1, 2, 3], [4, 5, 6, 7]));
    assert_eq!(
        second.batch(1, 0).unwrap(),
        Batch {
            tokens: vec![6, 106, 206],
            targets: vec![106, 206, IGNORED],
            cu_seqlens: vec![0, 3],
            positions: vec![0, 1, 2],
        }
    );
    assert!(second.batch(2, 0).is_none() && second.batch(0, 2).is_none());
    assert_eq!(data.epochs(second.next()), 8.0 / 12.0);
}

#[test]
fn a_pass_ends_with_the_data() {
    let folder = Folder::new("pass");
    let path = folder.write("a.npy", &npy(1, "<u2", 3, 2, &[1, 2, 3, 4, 5, 6]));
    let data = folder.open(&config(&path, Format::Tokens, 2)).unwrap();
    let shape = BatchShape { micro_batch: 2, data_ranks: 1, grad_accum: 1 };
    let step = data.pass(1, shape).unwrap().unwrap();
    assert_eq!((step.target_count(), step.samples()[1]), (1, None));
    let batch = step.batch(0, 0).unwrap();
    assert_eq!((batch.tokens, batch.cu_seqlens), (vec![5, 6, 0, 0], vec![0, 2, 4]));
    assert_eq!(batch.targets, [6, IGNORED, IGNORED, IGNORED]);
    assert!(
        data.pass(2, shape).unwrap().is_none() && data.pass(u64::MAX, shape).unwrap().is_none()
    );
}

#[test]
fn folders_are_taken_in_the_order_of_their_names() {
    let folder = Folder::new("folder");
    folder.write("data/b.jsonl", b"{\"text\": \"king\"}\n");
    folder.write("data/a.txt", b"queen");
    folder.write("data/.hidden.txt", b"no");
    folder.write("data/README", b"no");
    let text: Vec<Option<&str>> = vec![Some("prince"), Some("wolf")];
    let schema = "message m { optional binary text (UTF8); }";
    folder.write("data/c.parquet", &testing::parquet(schema, &[text], 1).unwrap());
    let data = folder.open(&config(&folder.path("data"), Format::Text, 64)).unwrap();
    assert_eq!((data.rows(), data.documents(), data.max_segments_per_row()), (3, 4, 3));
    let tokenizer = testing::stories().tokenizer().unwrap().unwrap();
    let shape = BatchShape { micro_batch: 3, data_ranks: 1, grad_accum: 1 };
    let batch = data.step(&data.start(), shape).unwrap().batch(0, 0).unwrap();
    let ids: Vec<u32> = batch.tokens.iter().map(|id| id.cast_unsigned()).collect();
    let text = tokenizer.decode(&ids, true).unwrap();
    assert_eq!(text, "queenkingprincewolf");
}

#[test]
fn long_texts_have_the_tokens_of_the_whole() {
    let folder = Folder::new("pieces");
    let lines = (0..60_000u32).map(|i| match i % 7 {
        0 => "\n\n".to_owned(),
        1 => format!("  \"The king's {i}th son,\" said he.\n"),
        _ => format!("Once upon a time, {}\n", i * i % 1009),
    });
    let text: String = lines.collect();
    assert!(text.len() > 1 << 20);
    let path = folder.write("a.txt", text.as_bytes());
    let data = folder.open(&config(&path, Format::Text, 4096)).unwrap();
    assert_eq!(data.documents(), 1);
    let tokenizer = testing::stories().tokenizer().unwrap().unwrap();
    let ids = tokenizer.encode(&text, false).unwrap();
    let wanted = [&[0][..], &ids, &[1]].concat();
    let micro_batch = usize::try_from(data.rows()).unwrap();
    let shape = BatchShape { micro_batch, data_ranks: 1, grad_accum: 1 };
    let batch = data.step(&data.start(), shape).unwrap().batch(0, 0).unwrap();
    let found = batch.tokens.iter().take(wanted.len()).map(|id| id.cast_unsigned());
    assert!(found.eq(wanted.iter().copied()));
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let folder = Folder::new("wrong");
    let tokens = folder.write("b.npy", &npy(1, "<i4", 1, 4, &[9; 4]));
    let lines = folder.write("c.jsonl", b"{\"text\": \"a\"}\nnonsense\n");
    let unknown = folder.write("d.csv", b"a,b");
    std::fs::create_dir(folder.path("empty")).unwrap();
    let entries = [folder.path("a.txt"), tokens, lines, unknown, folder.path("empty")];
    let errors = folder.open(&blend(&entries.map(|path| (path, 1.0)), 8)).unwrap_err();
    let told = told(&errors);
    assert_eq!(errors.len(), 5, "{told}");
    for why in [
        "a.txt: is missing",
        "b.npy: has rows of 4 tokens, and `data.seq_len` is 8",
        "c.jsonl: line 2 is not JSON: expected",
        "d.csv: is of a kind that is not known by its name",
        "empty: is a folder without .jsonl, .txt, .parquet or .npy files",
    ] {
        assert!(told.contains(why), "{told}");
    }
}

#[test]
fn a_tokenizer_of_another_model_is_noticed() {
    let folder = Folder::new("vocabulary");
    let path = folder.write("a.txt", b"Once upon a time there was a king.");
    let config = config(&path, Format::Text, 8);
    let errors = folder.open_with(&config, &testing::stories(), 100).unwrap_err();
    assert!(told(&errors).contains("and the model has 100: its tokenizer is another one"));
    assert!(folder.open(&config).is_ok());
}

#[test]
fn positions_of_other_data_are_refused() {
    let folder = Folder::new("position");
    let ids: Vec<i64> = (0..40).collect();
    let path = folder.write("a.npy", &npy(1, "<i4", 10, 4, &ids));
    let settings = config(&path, Format::Tokens, 4);
    let data = folder.open(&settings).unwrap();
    let shape = BatchShape { micro_batch: 3, data_ranks: 1, grad_accum: 1 };
    let next = data.step(&data.start(), shape).unwrap().next().clone();
    let json = serde_json::to_string(&next).unwrap();
    let back: Position = serde_json::from_str(&json).unwrap();
    assert_eq!(back, next);
    assert!(data.check(&back).is_ok());

    folder.write("a.npy", &npy(1, "<i4", 10, 4, &vec![5; 40]));
    let other = folder.open(&settings).unwrap();
    let error = other.step(&next, shape).unwrap_err().to_string();
    assert!(error.starts_with("the run cannot go on where it was: the data, the tokenizer"));
    let mut altered = data.start();
    altered.samples = 5;
    assert!(data.check(&altered).unwrap_err().to_string().contains("contradict each other"));
    for (micro_batch, data_ranks) in [(0, 1), (usize::MAX, 2), (1 << 30, 1), (1, 1 << 30)] {
        let shape = BatchShape { micro_batch, data_ranks, grad_accum: 1 };
        assert!(data.step(&data.start(), shape).is_err());
    }
}
