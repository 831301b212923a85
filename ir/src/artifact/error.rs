//! What can be wrong with an artifact, each with what to do about it.

use std::{io, path::PathBuf};

/// Why an artifact cannot be read, run or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// The operating system refused.
    #[error("{}: cannot {doing}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was attempted.
        doing: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file is something else.
    #[error(
        "{}: is not a compiled model: {reason}; make one with `brolly compile MODEL -o FILE`",
        path.display()
    )]
    NotAnArtifact {
        /// The file.
        path: PathBuf,
        /// How that shows.
        reason: String,
    },
    /// The file is of a format that this runtime does not read.
    #[error(
        "{}: has format {found}, and this runtime reads {}; {}",
        path.display(),
        readable(),
        remedy(*found)
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The file is truncated or altered.
    #[error(
        "{}: {what} {reason}: the file is damaged; copy it again from where it was made, or \
         compile the model again",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The part, such as a weight.
        what: String,
        /// How that shows.
        reason: String,
    },
    /// The manifest is whole and contradicts itself: the compiler that wrote it has a bug.
    #[error(
        "{}: the manifest contradicts itself; this is a bug of the compiler that made it \
         ({compiler}): {}",
        path.display(),
        problems.join("; ")
    )]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The compiler that made it.
        compiler: String,
        /// What is wrong.
        problems: Vec<String>,
    },
    /// The machine cannot run the code.
    #[error(
        "{}: is compiled for {target}, and this machine lacks {}; compile the model again for this \
         machine with `brolly compile --target-cpu native`, or for `x86-64-v3`",
        path.display(),
        missing.join(", ")
    )]
    Machine {
        /// The file.
        path: PathBuf,
        /// What it is compiled for.
        target: String,
        /// Architecture or processor features that are missing.
        missing: Vec<String>,
    },
    /// There is no such entry point.
    #[error("{}: has no entry point `{entry}`; it has {known}", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The entry that was asked for.
        entry: String,
        /// Those that there are.
        known: String,
    },
    /// A weight could not be produced while writing.
    #[error("{}: weight `{name}`: {reason}", path.display())]
    Weight {
        /// The file.
        path: PathBuf,
        /// The weight.
        name: String,
        /// What its producer said.
        reason: String,
    },
}

fn readable() -> String {
    match (super::OLDEST_FORMAT, super::FORMAT) {
        (oldest, newest) if oldest == newest => format!("format {newest}"),
        (oldest, newest) => format!("formats {oldest} to {newest}"),
    }
}

fn remedy(found: u32) -> &'static str {
    if found > super::FORMAT {
        "a newer brolly made it: update this one, or compile the model again with it"
    } else {
        "an older brolly made it: compile the model again"
    }
}
