//! NVIDIA's libraries besides the driver, opened when something first needs them.
#![allow(unsafe_code, reason = "opens shared libraries")]

use std::env;

use libloading::Library;

/// The first that opens: of the file that a variable of the environment names, or else of these.
///
/// # Errors
/// What the linker said of the first.
pub(crate) fn open(variable: &str, names: &[&str]) -> Result<Library, String> {
    let named = env::var(variable).ok().filter(|path| !path.is_empty());
    let named = named.as_deref().map(|path| [path]);
    let names = named.as_ref().map_or(names, |named| &named[..]);
    let mut reasons = Vec::new();
    let library = names.iter().find_map(|name| {
        // SAFETY: opening a library runs its initialisers, which is what it is opened for.
        unsafe { Library::new(name) }.map_err(|e| reasons.push(e.to_string())).ok()
    });
    library.ok_or_else(|| reasons.swap_remove(0))
}

#[cfg(test)]
mod tests {
    use super::open;

    #[test]
    fn what_is_said_is_about_the_first() {
        let error = open("BROLLY_NO_SUCH_VARIABLE", &["libnone-a.so", "libnone-b.so"]).unwrap_err();
        assert!(error.contains("libnone-a.so"), "{error}");
        // The C library is on every machine that runs this.
        open("BROLLY_NO_SUCH_VARIABLE", &["libnone-a.so", "libc.so.6"]).unwrap();
    }
}
