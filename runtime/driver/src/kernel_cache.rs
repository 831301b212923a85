//! Compiled kernels, kept from one compile to the next.
//!
//! A file for each kernel, named by the digest of everything that its code follows from. It begins
//! with a digest of its name and content, so that an altered, cut or misplaced file is found,
//! removed and compiled again. Files appear whole, by renaming; any number of processes may read
//! and write at once. The cache never fails a compile: where the folder cannot be used, kernels
//! are compiled as if there were none.

use std::{
    fs::{self, File, FileTimes},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime},
};

use codegen::{ObjectKey, Objects};

/// A folder of compiled kernels.
#[derive(Clone, Debug)]
pub struct KernelCache {
    dir: PathBuf,
    limit_bytes: u64,
}

/// Bytes that all kernels together may have: tens of thousands of kernels.
const LIMIT_BYTES: u64 = 512 << 20;

/// Bytes of the digest at the beginning of a file.
const DIGEST_BYTES: usize = 32;

/// Age at which a file that was never renamed has nobody any more who would.
const ABANDONED: Duration = Duration::from_secs(3600);

impl KernelCache {
    /// A cache in that folder, which is made when there is something to keep.
    pub fn at(dir: &Path) -> KernelCache {
        KernelCache { dir: dir.into(), limit_bytes: LIMIT_BYTES }
    }

    /// The same, of at most so many bytes after a compile.
    #[must_use]
    pub fn limited(self, limit_bytes: u64) -> KernelCache {
        KernelCache { limit_bytes, ..self }
    }

    /// Removes what was used longest ago until the rest is within the limit.
    pub fn trim(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let now = SystemTime::now();
        let mut files: Vec<(SystemTime, PathBuf, u64)> = Vec::new();
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let path = entry.path();
            if path.extension().is_some_and(|e| e == OBJECT) {
                files.push((used, path, meta.len()));
            } else if now.duration_since(used).is_ok_and(|age| age > ABANDONED) {
                remove(&path);
            }
        }
        let mut bytes: u64 = files.iter().map(|(.., bytes)| bytes).sum();
        files.sort();
        for (_, path, size) in files {
            if bytes <= self.limit_bytes {
                break;
            }
            remove(&path);
            bytes -= size;
        }
    }

    fn path(&self, key: &ObjectKey) -> PathBuf {
        self.dir.join(format!("{key}.{OBJECT}"))
    }

    fn put(&self, key: &ObjectKey, object: &[u8]) -> io::Result<()> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        fs::create_dir_all(&self.dir)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let draft = self.dir.join(format!("{key}.{}.{number}.part", std::process::id()));
        let written = File::create(&draft).and_then(|mut file| {
            file.write_all(digest(key, object).as_bytes())?;
            file.write_all(object)?;
            fs::rename(&draft, self.path(key))
        });
        if written.is_err() {
            remove(&draft);
        }
        written
    }
}

/// Extension of a kernel's file.
const OBJECT: &str = "kernel";

impl Objects for KernelCache {
    fn load(&self, key: &ObjectKey) -> Option<Vec<u8>> {
        let path = self.path(key);
        let bytes = fs::read(&path).ok()?;
        let sound = bytes
            .split_at_checked(DIGEST_BYTES)
            .is_some_and(|(head, object)| digest(key, object).as_bytes() == head);
        if !sound {
            tracing::warn!("{}: is damaged, so the kernel is compiled again", path.display());
            remove(&path);
            return None;
        }
        // By this time the least recently used are told; without it they are merely older.
        let touched = File::open(&path)
            .and_then(|file| file.set_times(FileTimes::new().set_modified(SystemTime::now())));
        if let Err(error) = touched {
            tracing::debug!("{}: {error}", path.display());
        }
        Some(bytes[DIGEST_BYTES..].to_vec())
    }

    fn store(&self, key: &ObjectKey, object: &[u8]) {
        if let Err(error) = self.put(key, object) {
            tracing::warn!("{}: a kernel cannot be kept: {error}", self.dir.display());
        }
    }
}

/// A digest of a file's name and content.
fn digest(key: &ObjectKey, object: &[u8]) -> blake3::Hash {
    let mut h = blake3::Hasher::new();
    h.update(key.to_string().as_bytes()).update(object);
    h.finalize()
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!("{}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(name: &str) -> KernelCache {
        let name = format!("brolly-kernels-{name}-{}", std::process::id());
        KernelCache::at(&std::env::temp_dir().join(name))
    }

    fn key(n: u8) -> ObjectKey {
        ObjectKey::from([n; 32])
    }

    #[test]
    fn what_is_kept_is_found_until_it_is_altered() {
        let cache = cache("altered");
        assert_eq!(cache.load(&key(1)), None);
        cache.store(&key(1), b"code");
        assert_eq!(cache.load(&key(1)).as_deref(), Some(&b"code"[..]));
        let path = cache.path(&key(1));
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert_eq!(cache.load(&key(1)), None, "byte {at}");
            assert!(!path.exists(), "byte {at}");
            fs::write(&path, &good[..at]).unwrap();
            assert_eq!(cache.load(&key(1)), None, "cut at {at}");
        }
        fs::write(cache.path(&key(2)), &good).unwrap();
        assert_eq!(cache.load(&key(2)), None, "another kernel's file");
        fs::remove_dir_all(&cache.dir).unwrap();
    }

    #[test]
    fn the_least_recently_used_make_room() {
        let cache = cache("room").limited(3 * (32 + 100));
        for n in 0..5 {
            cache.store(&key(n), &[n; 100]);
            let long_ago = SystemTime::now() - Duration::from_secs(7200 - u64::from(n));
            let file = File::open(cache.path(&key(n))).unwrap();
            file.set_times(FileTimes::new().set_modified(long_ago)).unwrap();
        }
        let abandoned = cache.dir.join("x.1.1.part");
        fs::write(&abandoned, "x").unwrap();
        cache.trim();
        assert!(abandoned.exists(), "somebody may be writing it");
        let file = File::open(&abandoned).unwrap();
        file.set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH)).unwrap();
        let kept = [0, 1, 2, 3, 4].map(|n| cache.path(&key(n)).exists());
        assert_eq!(kept, [false, false, true, true, true]);
        assert!(cache.load(&key(2)).is_some(), "used now");
        cache.store(&key(5), &[5; 100]);
        cache.trim();
        let kept = [2, 3, 4, 5].map(|n| cache.path(&key(n)).exists());
        assert_eq!(kept, [true, false, true, true]);
        assert!(!abandoned.exists());
        fs::remove_dir_all(&cache.dir).unwrap();
    }

    #[test]
    fn many_at_once_find_nothing_or_the_whole() {
        let cache = cache("many");
        std::thread::scope(|scope| {
            for n in 0..8u8 {
                let cache = &cache;
                scope.spawn(move || {
                    for i in 0..50 {
                        let object = vec![i; 1000];
                        cache.store(&key(i % 5), &object);
                        let found = cache.load(&key(i % 5));
                        assert!(found.is_none_or(|o| o.iter().all(|b| *b == o[0])));
                        if i % 10 == n {
                            cache.trim();
                        }
                    }
                });
            }
        });
        fs::remove_dir_all(&cache.dir).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_no_error() {
        let file = std::env::temp_dir().join(format!("brolly-no-folder-{}", std::process::id()));
        fs::write(&file, "").unwrap();
        let cache = KernelCache::at(&file.join("kernels"));
        cache.store(&key(1), b"code");
        assert_eq!(cache.load(&key(1)), None);
        cache.trim();
        fs::remove_file(file).unwrap();
    }
}
