//! Kernels that begin while the one before them ends: `griddepcontrol` of PTX ISA 7.8, for sm_90.
//!
//! A kernel first waits until the grid before it has ended and what that wrote is seen, then lets
//! the grid behind it be brought to the multiprocessors. So the time in which one grid drains and
//! the next is launched is hidden, and nothing of a kernel runs early. Where a launch does not ask
//! for it, both are nothing.

/// Where the first instruction of a kernel stands in LLVM's text.
const FIRST: &str = "// %bb.0:";

/// The text with both instructions at the beginning of each kernel.
pub(super) fn insert(ptx: &str) -> String {
    let mut out = String::with_capacity(ptx.len() + 128);
    let mut is_entry = false;
    for line in ptx.lines() {
        is_entry |= line.contains(".entry ");
        out.push_str(line);
        out.push('\n');
        if is_entry && line.starts_with(FIRST) {
            out.push_str("\tgriddepcontrol.wait;\n\tgriddepcontrol.launch_dependents;\n");
            is_entry = false;
        }
    }
    debug_assert!(!is_entry, "a kernel without a first block");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kernel_waits_once_before_anything_else() {
        let text = ".visible .entry a(\n)\n{\n\t.reg .b32 %r<2>;\n\n// %bb.0:\n\tret;\n}\n";
        let both = format!("{text}{}", text.replace(" a(", " b("));
        let got = insert(&both);
        assert_eq!(got.matches("griddepcontrol.wait;").count(), 2);
        let kernel = got.split(".visible").nth(1).unwrap();
        let [wait, ret] = ["griddepcontrol.wait;", "\tret;"].map(|t| kernel.find(t).unwrap());
        assert!(wait < ret);
        assert_eq!(insert("// %bb.0:\n"), "// %bb.0:\n", "no kernel");
    }
}
