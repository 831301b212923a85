//! Shards as they are written, and as they must not be.

use std::fs::{self, File, OpenOptions};

use proptest::prelude::*;

use super::*;
use crate::data::testing::Folder;

fn key() -> blake3::Hash {
    blake3::hash(b"key")
}

fn write(path: &Path, documents: &[&[u32]]) {
    let mut writer = ShardWriter::new(File::create(path).unwrap()).unwrap();
    for document in documents {
        let mut tokens: Vec<Token> = document.iter().map(|id| Token::new(*id)).collect();
        if let Some(last) = tokens.last_mut() {
            *last = last.last();
        }
        writer.write(&tokens).unwrap();
    }
    writer.finish(&key()).unwrap();
}

fn is_whole(bytes: &[u8]) -> bool {
    check(bytes, &key(), Path::new(""), &Watch::nobody()).is_some()
}

fn open(path: &Path) -> Option<Shard> {
    Shard::open(path, &key(), &Watch::nobody()).unwrap()
}

#[test]
fn shards_hold_what_was_written() {
    let folder = Folder::new("shard");
    let path = folder.path("a.tokens");
    assert!(open(&path).is_none());
    write(&path, &[&[5, 6, 7], &[8, 9]]);
    let shard = open(&path).unwrap();
    assert_eq!((shard.tokens(), shard.documents(), shard.max_id()), (5, 2, 9));
    let window = |from, len| shard.window(from, len).map(|t| (t.id(), t.is_last()));
    assert_eq!(window(2, 2).collect::<Vec<_>>(), [(7, true), (8, false)]);
    assert_eq!((window(4, 9).len(), window(5, 1).len(), window(99, 1).len()), (1, 0, 0));
    assert!(Shard::open(&path, &blake3::hash(b"other"), &Watch::nobody()).unwrap().is_none());
}

#[test]
fn no_altered_byte_passes() {
    let folder = Folder::new("shard-damage");
    let path = folder.path("a.tokens");
    write(&path, &[&[1, 2, 3]]);
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        fs::write(&path, &bytes).unwrap();
        assert!(open(&path).is_none(), "byte {at}");
        fs::write(&path, &good[..at]).unwrap();
        assert!(open(&path).is_none(), "cut at {at}");
    }
    fs::write(&path, [&good[..], &[0; 4]].concat()).unwrap();
    assert!(open(&path).is_none());
    fs::write(&path, &good).unwrap();
    assert!(open(&path).is_some());
}

#[test]
fn a_full_disk_is_an_error() {
    let Ok(full) = OpenOptions::new().write(true).open("/dev/full") else { return };
    let mut writer = ShardWriter::new(full).unwrap();
    let mut result = Ok(());
    for _ in 0..3 {
        result = result.and_then(|()| writer.write(&[Token::new(1); 1 << 18]));
    }
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
}

proptest! {
    #[test]
    fn no_bytes_are_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(!is_whole(&bytes));
        prop_assert!(!is_whole(&[&MAGIC[..], &VERSION.to_le_bytes(), &bytes].concat()));
    }

    /// A header whose own digest is right, and whose counts are not.
    #[test]
    fn false_counts_are_noticed(tokens in 1u64.., documents: u64) {
        let (key, body) = (*key().as_bytes(), [0; 32]);
        let header = Header { key, tokens, documents, max_id: 0, body };
        let bytes = header.to_bytes();
        prop_assert_eq!(Header::from_bytes(&bytes), Some(header));
        prop_assert!(!is_whole(&bytes));
    }
}
