//! Kernels that begin while the one before them ends: `griddepcontrol` of PTX ISA 7.8, for sm_90.
//!
//! A kernel first lets the grid behind it be brought to the multiprocessors, when all of its own
//! blocks are there, and then waits until the grid before it has ended and what that wrote is seen.
//! So the time in which one grid drains and the next is launched is hidden. A grid ends behind its
//! wait, so one that waits for it has waited for all before. Where a launch does not ask for it,
//! both instructions are nothing.
//!
//! Kernels that read weights before they wait have both in their text already, and are left alone.

/// The text with both instructions at the beginning of each kernel, unless there are some.
pub(super) fn insert(ptx: &str) -> String {
    if ptx.contains("griddepcontrol.wait;") {
        return ptx.to_owned();
    }
    let mut out = String::with_capacity(ptx.len() + 128);
    // Of an entry, its parameters and then its declarations.
    let (mut is_head, mut is_declared) = (false, false);
    for line in ptx.lines() {
        is_head |= line.contains(".entry ");
        if is_declared && !line.trim().is_empty() && !line.starts_with("\t.") {
            out.push_str("\tgriddepcontrol.launch_dependents;\n\tgriddepcontrol.wait;\n");
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
        assert_eq!(insert(&got), got, "kernels that wait themselves");
        let looped = insert(&text.replace("// %bb.0:", "$L__BB0_1:"));
        assert!(looped.find("griddepcontrol").unwrap() < looped.find("$L__BB0_1").unwrap());
    }
}
