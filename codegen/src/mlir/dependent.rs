//! Kernels that begin while the one before them ends: `griddepcontrol` of PTX ISA 7.8, for sm_90.
//!
//! A kernel first waits until the grid before it has ended and what that wrote is seen, then lets
//! the grid behind it be brought to the multiprocessors. So the time in which one grid drains and
//! the next is launched is hidden, and nothing of a kernel runs early. Where a launch does not ask
//! for it, both are nothing.

/// The text with both instructions at the beginning of each kernel.
pub(super) fn insert(ptx: &str) -> String {
    let mut out = String::with_capacity(ptx.len() + 128);
    // Of an entry, its parameters and then its declarations.
    let (mut is_head, mut is_declared) = (false, false);
    for line in ptx.lines() {
        is_head |= line.contains(".entry ");
        if is_declared && !line.trim().is_empty() && !line.starts_with("\t.") {
            out.push_str("\tgriddepcontrol.wait;\n\tgriddepcontrol.launch_dependents;\n");
            is_declared = false;
        }
        if is_head && line.starts_with('{') {
            (is_head, is_declared) = (false, true);
        }
        out.push_str(line);
        out.push('\n');
    }
    debug_assert!(!is_head && !is_declared, "a kernel without instructions");
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
        let looped = insert(&text.replace("// %bb.0:", "$L__BB0_1:"));
        assert!(looped.find("griddepcontrol").unwrap() < looped.find("$L__BB0_1").unwrap());
    }
}
