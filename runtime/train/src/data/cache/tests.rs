//! The cache's promises: made once, found again, made again when damaged, safe for many at once.

use std::{cell::RefCell, thread};

use super::*;
use crate::{
    config::Format,
    data::testing::{Folder, config, stories},
};

const LINES: &str = "{\"text\": \"Once upon a time\"}\n\n{\"text\": \"there was a king\"}\n";

/// Opens a file and tells in which stages.
fn shard(
    folder: &Folder,
    file: &SourceFile,
    config: &DataConfig,
) -> (Result<(Shard, blake3::Hash), DataError>, Vec<Stage>) {
    let stages = RefCell::new(Vec::new());
    let watch = |progress: super::super::Progress<'_>| {
        assert!(progress.done <= progress.total);
        let mut stages = stages.borrow_mut();
        if stages.last() != Some(&progress.stage) {
            stages.push(progress.stage);
        }
    };
    let dir = folder.path("cache");
    let bundle = stories();
    let cache = Cache::new(&dir, &bundle, config, 2, Watch(&watch)).unwrap();
    let result = cache.shard(file);
    drop(cache);
    (result, stages.into_inner())
}

fn jsonl(folder: &Folder, text: &str) -> (SourceFile, DataConfig) {
    let path = folder.write("a.jsonl", text.as_bytes());
    let config = config(&path, Format::Text, 8);
    (SourceFile { path, kind: Kind::Jsonl }, config)
}

fn ids(shard: &Shard) -> Vec<u32> {
    shard.window(0, 1 << 20).map(|token| token.id()).collect()
}

#[test]
fn tokens_are_made_once() {
    let folder = Folder::new("cache-once");
    let (file, config) = jsonl(&folder, LINES);
    let (made, stages) = shard(&folder, &file, &config);
    assert_eq!(stages, [Stage::Digest, Stage::Tokenize, Stage::Check]);
    let (made, key) = made.unwrap();
    assert_eq!(made.documents(), 2);
    assert_eq!(folder.list("cache"), [format!("{key}.tokens")]);
    let (found, stages) = shard(&folder, &file, &config);
    assert_eq!(stages, [Stage::Digest, Stage::Check]);
    assert_eq!(ids(&found.unwrap().0), ids(&made));
}

#[test]
fn whatever_tokens_follow_from_is_in_the_key() {
    let folder = Folder::new("cache-key");
    let (file, config) = jsonl(&folder, LINES);
    let key = |config: &DataConfig, file: &SourceFile| shard(&folder, file, config).0.unwrap().1;
    let first = key(&config, &file);
    let rows = DataConfig { seq_len: 99, ..config.clone() };
    assert_eq!(key(&rows, &file), first, "the length of rows changes no token");
    let renamed = folder.write("b.jsonl", LINES.as_bytes());
    assert_eq!(key(&config, &SourceFile { path: renamed, ..file.clone() }), first);
    let (changed, _) = jsonl(&folder, &LINES.replace("king", "kind"));
    assert_ne!(key(&config, &changed), first);
    let dir = folder.path("cache");
    let of = |bundle: &TextBundle, config: &DataConfig| {
        let cache = Cache::new(&dir, bundle, config, 1, Watch::nobody()).unwrap();
        cache.key(Kind::Plain, &blake3::hash(b""))
    };
    let mut other = stories();
    other.add_bos_token = Some(false);
    let parted = DataConfig { separator: Some("\n".into()), ..config.clone() };
    let named = DataConfig { column: Some("story".into()), ..config.clone() };
    let chat = DataConfig { format: Format::Chat, ..config.clone() };
    let keys = [
        of(&stories(), &config),
        of(&other, &config),
        of(&stories(), &parted),
        of(&stories(), &named),
        of(&stories(), &chat),
    ];
    for (i, key) in keys.iter().enumerate() {
        assert!(!keys[..i].contains(key), "{i}");
    }
}

#[test]
fn damaged_and_foreign_tokens_are_made_again() {
    let folder = Folder::new("cache-damage");
    let (file, config) = jsonl(&folder, LINES);
    let (made, _) = shard(&folder, &file, &config);
    let (made, key) = made.unwrap();
    let wanted = ids(&made);
    // A mapped file is not to be written to.
    drop(made);
    let path = folder.path(&format!("cache/{key}.tokens"));
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    // A file that a process left which ended too early.
    folder.write(&format!("cache/{key}.1-2.unfinished"), b"half");
    for damage in [&bytes[..], &bytes[..50], b"", b"something else"] {
        fs::write(&path, damage).unwrap();
        let (again, stages) = shard(&folder, &file, &config);
        assert!(stages.contains(&Stage::Tokenize));
        assert_eq!(ids(&again.unwrap().0), wanted);
        assert_eq!(folder.list("cache"), [format!("{key}.tokens")]);
    }
}

#[test]
fn many_at_once_make_the_same() {
    let folder = Folder::new("cache-race");
    let lines: String = (0..2000).map(|i| format!("{{\"text\": \"king {i}\"}}\n")).collect();
    let (file, config) = jsonl(&folder, &lines);
    let each: Vec<(Vec<u32>, Vec<Stage>)> = thread::scope(|scope| {
        let open = || {
            let (opened, stages) = shard(&folder, &file, &config);
            (ids(&opened.unwrap().0), stages)
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(each.iter().all(|(ids, _)| *ids == each[0].0));
    let makers = each.iter().filter(|(_, stages)| stages.contains(&Stage::Tokenize)).count();
    assert_eq!(makers, 1);
    assert_eq!(folder.list("cache").len(), 1);
}

#[test]
fn bad_lines_are_told_at_once_and_leave_nothing() {
    let folder = Folder::new("cache-bad");
    let good = "{\"text\": \"a\"}\n";
    let text = format!("{good}{{\"text\": 3}}\n{good}nonsense\n{}", "{}\n".repeat(30));
    let (file, config) = jsonl(&folder, &text);
    let error = shard(&folder, &file, &config).0.unwrap_err().to_string();
    let lines: Vec<&str> = error.lines().collect();
    let at = file.path.display();
    assert_eq!(lines.len(), 22);
    assert_eq!(lines[0], format!("{at}: 32 lines cannot be used"));
    assert_eq!(lines[1], format!("{at}: line 2 has in `text` a number, and a text is wanted"));
    assert!(lines[2].starts_with(&format!("{at}: line 4 is not JSON: expected ")), "{}", lines[2]);
    assert_eq!(lines[3], format!("{at}: line 5 has no field `text`; it has "));
    assert_eq!(lines[21], "and 12 more");
    assert!(folder.list("cache").is_empty());
}

#[test]
fn files_without_the_column_or_without_documents_are_told_in_one_line() {
    let folder = Folder::new("cache-column");
    let error = |text: &str| {
        let (file, config) = jsonl(&folder, text);
        shard(&folder, &file, &config).0.unwrap_err().to_string()
    };
    let lacking = error(&"{\"content\": \"a\", \"id\": 3}\n".repeat(50));
    let wanted = "a.jsonl: has no column `text`; it has content, id; name one by `data.column`";
    assert!(lacking.ends_with(wanted), "{lacking}");
    for empty in ["", "\n \n", "{\"text\": \"\"}\n"] {
        assert!(
            error(empty).ends_with("a.jsonl: holds no documents: there is nothing to train on")
        );
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_an_error() {
    let folder = Folder::new("cache-file");
    let (file, config) = jsonl(&folder, LINES);
    folder.write("cache", b"a file");
    let error = shard(&folder, &file, &config).0.unwrap_err().to_string();
    assert!(error.contains("cache: cannot be written: "), "{error}");
    let full =
        DataError::Write { path: "a".into(), source: io::Error::from(io::ErrorKind::StorageFull) };
    assert!(full.to_string().contains("; make room, or choose another cache folder"));
}
