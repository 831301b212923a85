//! Starts this program again as the ranks of a job.

use std::{
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// The only test that such a process runs.
pub(crate) const TEST: &str = "roles::rank_of_another_test";

/// A folder that goes when it is dropped.
pub(crate) struct Folder(PathBuf);

/// Processes that are ranks.
pub(crate) struct Job {
    pub(crate) ranks: Vec<Child>,
    pub(crate) folder: Folder,
    pub(crate) port: u16,
    role: String,
}

impl Folder {
    pub(crate) fn new(name: &str) -> Folder {
        let path = env::temp_dir().join(format!("brolly-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// What a rank has left under a name; waits until it has.
    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        let begun = Instant::now();
        loop {
            match fs::read(self.0.join(name)) {
                Ok(bytes) => return bytes,
                Err(error) if begun.elapsed() > Duration::from_secs(60) => {
                    panic!("{name}: {error}")
                }
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    pub(crate) fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// This program, to be run as a rank in this role.
pub(crate) fn rank(role: &str, folder: &Folder, options: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([TEST, "--exact", "--nocapture"]).stdout(Stdio::null());
    command.env("BROLLY_TEST_ROLE", role).env("BROLLY_TEST_FOLDER", folder.path());
    // Of the launcher that this test itself may run under.
    command.env_remove("TORCHELASTIC_USE_AGENT_STORE");
    command.envs(options.iter().copied());
    command
}

impl Job {
    /// Ranks of a job over TCP, with the variables that `torchrun` sets.
    pub(crate) fn start(name: &str, ranks: usize, role: &str, options: &[(&str, &str)]) -> Job {
        let (role, port) = (role.to_owned(), free_port());
        let mut job = Job { ranks: Vec::new(), folder: Folder::new(name), port, role };
        let size = ranks.to_string();
        let options = [options, &[("WORLD_SIZE", size.as_str())]].concat();
        job.start_each(&vec![options; ranks]);
        job
    }

    /// More ranks, each with variables of its own.
    pub(crate) fn start_each<'a>(&mut self, ranks: &[impl AsRef<[(&'a str, &'a str)]>]) {
        for options in ranks {
            let index = self.ranks.len();
            let errors = self.folder.path().join(format!("stderr.{index}"));
            let mut command = rank(&self.role, &self.folder, &[]);
            command.stderr(fs::File::create(errors).unwrap());
            command.env("RANK", index.to_string());
            command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", self.port.to_string());
            command.envs(options.as_ref().iter().copied());
            self.ranks.push(command.spawn().unwrap());
        }
    }

    /// Waits until a rank has ended, with its exit code; none if a signal ended it.
    pub(crate) fn code(&mut self, rank: usize, within: Duration) -> Option<i32> {
        wait(&mut self.ranks[rank], within)
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, rank: usize, name: &str) {
        signal(self.ranks[rank].id(), name);
    }

    pub(crate) fn errors(&self, rank: usize) -> String {
        self.folder.text(&format!("stderr.{rank}"))
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        for child in &mut self.ranks {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits for a process, and fails the test if it does not end.
pub(crate) fn wait(child: &mut Child, within: Duration) -> Option<i32> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if begun.elapsed() > within {
            let _ = child.kill();
            panic!("a process does not end within {within:?}");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn signal(process: u32, name: &str) {
    let text = format!("kill -{name} {process}");
    assert!(Command::new("sh").args(["-c", &text]).status().unwrap().success());
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
