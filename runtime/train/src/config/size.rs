//! Numbers of bytes with a unit.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

/// Units by name, the largest binary ones first.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// A number of bytes, written as `80GiB`, `1.5TB` or `4096`.
///
/// ```
/// # use brolly_train as train;
/// let cap: train::ByteSize = "1.5GiB".parse().unwrap();
/// assert_eq!((cap.0, cap.to_string().as_str()), (3 << 29, "1536MiB"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A text is no number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no number of bytes above zero; write it like 80GiB, 512MiB or 1.5TB")]
pub struct NoByteSize;

impl FromStr for ByteSize {
    type Err = NoByteSize;

    fn from_str(text: &str) -> Result<ByteSize, NoByteSize> {
        let text = text.trim();
        let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(at);
        let unit = unit.trim_start();
        let is_unit = |name: &str| name.eq_ignore_ascii_case(unit);
        let factor = match UNITS.iter().find(|(name, _)| is_unit(name)) {
            Some((_, factor)) => *factor,
            None if unit.is_empty() => 1,
            None => return Err(NoByteSize),
        };
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        let digits = part.len().min(9);
        let scale = 10u128.pow(u32::try_from(digits).unwrap_or(9));
        let parse = |digits: &str| match digits {
            "" => Ok(0),
            digits => digits.parse::<u64>().map(u128::from).map_err(|_| NoByteSize),
        };
        if number.is_empty() || part.contains('.') || part.len() > digits {
            return Err(NoByteSize);
        }
        let bytes = (parse(whole)? * scale + parse(part)?) * u128::from(factor) / scale;
        // Larger ones do not survive a TOML integer.
        match u64::try_from(bytes) {
            Ok(bytes @ 1..=0x7fff_ffff_ffff_ffff) => Ok(ByteSize(bytes)),
            _ => Err(NoByteSize),
        }
    }
}

/// With the largest binary unit in which it is whole.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit =
            UNITS[..4].iter().find(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor));
        let (name, factor) = unit.unwrap_or(&("B", 1));
        write!(f, "{}{name}", self.0 / factor)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("4096", 4096),
            ("80GiB", 80 << 30),
            ("512 mib", 512 << 20),
            ("0.5KB", 500),
            ("2tb", 2_000_000_000_000),
            ("1.000000001GB", 1_000_000_001),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        let shapes = ["", "GiB", "-1GiB", "0GiB", "1e3", "1.2.3GB", "nan", "80GiBs", ".", "9EB"];
        let values = ["99999999999999999999", "99999999999TiB", "0.4B", "1.0000000001GB"];
        for text in shapes.into_iter().chain(values) {
            assert_eq!(text.parse::<ByteSize>(), Err(NoByteSize), "{text}");
        }
    }

    proptest! {
        #[test]
        fn sizes_print_as_they_parse(bytes in 1..=i64::MAX as u64, shift in 0..63u32) {
            let size = ByteSize((bytes >> shift).max(1));
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn no_text_is_a_panic(text in ".{0,20}") {
            let _ = text.parse::<ByteSize>();
        }
    }
}
