//! Plain text tables whose columns line up, and quantities for people to read.

use std::time::Duration;

/// `rows` as lines: the first column to the left, the others to the right or left by `right`.
pub(crate) fn table(rows: &[Vec<String>], right: bool) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell_width = |row: &Vec<String>, column: usize| row.get(column).map(|c| c.chars().count());
    let width = |column| rows.iter().filter_map(|row| cell_width(row, column)).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if right && column > 0 { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// A duration with three significant digits or so: `85 ms`, `2.41 s`, `12 min 05 s`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 60.0 => format!("{s:.2} s"),
        _ => format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60),
    }
}

/// A number of bytes in decimal megabytes: `22.7 MB`.
pub(crate) fn megabytes(bytes: f64) -> String {
    format!("{:.1} MB", bytes / 1e6)
}

/// A number of bytes in decimal kilobytes: `14.2 kB`.
pub(crate) fn kilobytes(bytes: f64) -> String {
    format!("{:.1} kB", bytes / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<String>> {
        [["", "1"], ["größe", "0.98"]].map(|row| row.map(str::to_owned).to_vec()).to_vec()
    }

    #[test]
    fn columns_line_up_by_characters() {
        assert_eq!(table(&rows(), true), "          1\ngröße  0.98\n");
        assert_eq!(table(&rows(), false), "       1\ngröße  0.98\n");
    }

    #[test]
    fn durations_keep_their_digits() {
        let shown = [0.085, 2.408, 725.0].map(|s| duration(Duration::from_secs_f64(s)));
        assert_eq!(shown, ["85 ms", "2.41 s", "12 min 05 s"]);
    }
}
