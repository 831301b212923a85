//! The name that was probably meant.

use std::collections::BTreeMap;

/// What to do about a key that its table does not have: `known` are the keys of all tables.
pub(super) fn key(known: &BTreeMap<String, Vec<&'static str>>, table: &str, key: &str) -> String {
    let full = |table: &str, key: &str| match table {
        "" => key.to_owned(),
        table => format!("{table}.{key}"),
    };
    let own = known.get(table).map(Vec::as_slice).unwrap_or_default();
    if let Some(near) = of(key, own) {
        return format!("did you mean `{}`?", full(table, near));
    }
    let elsewhere = known
        .iter()
        .find(|(other, keys)| *other != table && !other.contains('[') && keys.contains(&key));
    match elsewhere {
        Some((other, _)) if other.is_empty() => {
            format!("`{key}` belongs at the top of the file, before the first table")
        }
        Some((other, _)) => format!("`{key}` belongs in [{other}]"),
        None => {
            let mut names = own.to_vec();
            names.sort_unstable();
            names.dedup();
            match table {
                "" => format!("known there are {}", names.join(", ")),
                _ => format!("it has {}", names.join(", ")),
            }
        }
    }
}

/// The nearest of some names, if it is near enough for a slip.
pub(super) fn of<'n>(text: &str, names: &[&'n str]) -> Option<&'n str> {
    let wanted = plain(text);
    let near = names.iter().map(|name| (distance(&wanted, &plain(name)), *name));
    let (distance, name) = near.min_by_key(|(distance, _)| *distance)?;
    (distance <= name.chars().count().max(wanted.len()) / 3).then_some(name)
}

/// Case and separators are no part of a name's likeness.
fn plain(text: &str) -> Vec<char> {
    text.chars().take(64).filter(|c| !"_-. ".contains(*c)).flat_map(char::to_lowercase).collect()
}

/// Insertions, deletions, replacements and swaps of neighbours that make one of the other: optimal
/// string alignment.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_seen_and_other_words_are_not() {
        let names = ["betas", "weight_decay", "warmup_steps", "lr", "data"];
        for (slip, name) in [
            ("beta", "betas"),
            ("weightdecay", "weight_decay"),
            ("weight-deacy", "weight_decay"),
            ("warm_up_steps", "warmup_steps"),
            ("LR", "lr"),
        ] {
            assert_eq!(of(slip, &names), Some(name));
        }
        assert_eq!(of("tokens", &names), None);
        assert_eq!(of("", &names), None);
    }

    #[test]
    fn a_swap_is_one_slip() {
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        for (a, b, wanted) in
            [("", "", 0), ("ab", "ba", 1), ("abc", "", 3), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(&chars(a), &chars(b)), wanted);
        }
    }
}
