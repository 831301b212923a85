//! Slurm's lists of nodes, such as `gpu[01-04,07],login2`.

/// The first node of a list; `None` if it is none.
pub(super) fn first_host(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list.trim();
    loop {
        let end = rest.find(['[', ',']).unwrap_or(rest.len());
        host.push_str(&rest[..end]);
        if !rest[end..].starts_with('[') {
            break;
        }
        let (ranges, behind) = rest[end + 1..].split_once(']')?;
        let first = ranges.split([',', '-']).next()?;
        if first.is_empty() || !first.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        host.push_str(first);
        rest = behind;
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    (!host.is_empty() && host.chars().all(is_name)).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_node_is_found() {
        for (list, first) in [
            ("login", "login"),
            ("a1,a2", "a1"),
            ("gpu[01-04,07],login2", "gpu01"),
            ("gpu[7]", "gpu7"),
            ("rack[2-3]node[010-012].site", "rack2node010.site"),
        ] {
            assert_eq!(first_host(list).as_deref(), Some(first), "{list}");
        }
    }

    #[test]
    fn what_is_no_list_has_no_node() {
        for list in ["", "gpu[", "gpu[]", "gpu[a-b]", ",a", "a b", "gpu[1-2", "[]"] {
            assert_eq!(first_host(list), None, "{list}");
        }
    }
}
