//! The server's process, watched from outside.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use super::client::Client;

/// Names the child's artifact.
pub(super) const ARTIFACT: &str = "BROLLY_SOAK_ARTIFACT";
/// Bytes of its key/value memory.
pub(super) const KV_BYTES: &str = "BROLLY_SOAK_KV_BYTES";

const PATIENCE: Duration = Duration::from_secs(60);

/// A server that runs; dropping it kills it.
pub(super) struct Server {
    child: Mutex<Child>,
    pid: u32,
    address: String,
}

impl Server {
    pub(super) fn start(artifact: &Path, kv_bytes: u64) -> Server {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "soak::serves", "--nocapture"])
            .env(ARTIFACT, artifact)
            .env(KV_BYTES, kv_bytes.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines.by_ref().map(Result::unwrap).find_map(|line| {
            // The test harness has begun the line with the name of the test.
            Some(line.split_once("serving at ")?.1.to_owned())
        });
        // What it says at the end is not this test's result, and must not be counted as one.
        thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        let pid = child.id();
        Server { child: Mutex::new(child), pid, address: address.expect("an address is told") }
    }

    pub(super) fn client(&self) -> Client {
        Client { address: self.address.clone() }
    }

    fn status_bytes(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// Memory that is no file's now.
    pub(super) fn anonymous_bytes(&self) -> u64 {
        self.status_bytes("RssAnon:")
    }

    /// The most that it had resident, less what is mapped from files, which is code of this test
    /// binary for the greatest part.
    pub(super) fn peak_anonymous_bytes(&self) -> u64 {
        self.status_bytes("VmHWM:") - self.status_bytes("RssFile:")
    }

    pub(super) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap().count()
    }

    /// Waits until no more descriptors are open than before.
    pub(super) fn wait_for_descriptors(&self, before: usize) {
        let start = Instant::now();
        while self.descriptors() > before {
            let now = self.descriptors();
            assert!(start.elapsed() < PATIENCE, "{now} descriptors, and there were {before}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Sends SIGTERM.
    pub(super) fn terminate(&self) {
        let kill = format!("kill -TERM {}", self.pid);
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits for its end, which must be a good one.
    pub(super) fn expect_success(&self) {
        let start = Instant::now();
        let mut child = self.child.lock().unwrap();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return assert!(status.success(), "{status}");
            }
            assert!(start.elapsed() < PATIENCE, "it goes on after SIGTERM");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap();
        // Both fail where it has ended.
        let _ = child.kill();
        let _ = child.wait();
    }
}
