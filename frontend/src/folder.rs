//! Files that a model's own files point to: always within the model's folder.

use std::path::{Component, Path, PathBuf};

/// The file that `name`, found in one of the folder's files, stands for.
///
/// # Errors
/// Says why where the name is absolute, leaves the folder, by `..` or by a symbolic link, or does
/// not exist.
pub(crate) fn within(folder: &Path, name: &str) -> Result<PathBuf, String> {
    let relative = Path::new(name);
    let plain = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
    if name.is_empty() || name.contains('\0') || !relative.components().all(plain) {
        return Err(format!("names the file `{name}`, which is not within the model's folder"));
    }
    let file = folder.join(relative);
    let real = |p: &Path| p.canonicalize();
    match (real(folder), real(&file)) {
        (Ok(root), Ok(target)) if target.starts_with(&root) => Ok(file),
        (Ok(_), Ok(target)) => Err(format!(
            "names the file `{name}`, a link to {}, which is not within the model's folder; copy \
             it there",
            target.display()
        )),
        (Err(e), _) | (_, Err(e)) => {
            Err(format!("names the file `{name}`, which cannot be read: {e}"))
        }
    }
}
