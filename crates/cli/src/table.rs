//! Plain aligned text tables.

/// Rows of cells under a header; columns whose every cell looks like a number align right.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column titles.
    pub fn new(header: &[&str]) -> Table {
        Table { rows: vec![header.iter().map(|s| (*s).to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as text, one line per row.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cell = |row: &Vec<String>, c: usize| row.get(c).cloned().unwrap_or_default();
        let width: Vec<usize> = (0..columns)
            .map(|c| self.rows.iter().map(|r| cell(r, c).chars().count()).max().unwrap_or(0))
            .collect();
        let numeric: Vec<bool> = (0..columns)
            .map(|c| self.rows[1..].iter().all(|r| looks_numeric(&cell(r, c))))
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for c in 0..columns {
                let value = cell(row, c);
                let gap = " ".repeat(width[c] - value.chars().count());
                let sep = if c == 0 { "" } else { "  " };
                if numeric[c] {
                    line.push_str(&format!("{sep}{gap}{value}"));
                } else {
                    line.push_str(&format!("{sep}{value}{gap}"));
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

fn looks_numeric(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    digits.is_empty() || digits.starts_with(|c: char| c.is_ascii_digit())
}

/// `1.23 GFLOP`-like text: a value scaled to k, M, G, T with three digits.
pub fn scaled(value: f64, unit: &str) -> String {
    for (factor, prefix) in [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if value >= factor {
            return format!("{:.*} {prefix}{unit}", digits(value / factor), value / factor);
        }
    }
    format!("{value:.0} {unit}")
}

fn digits(value: f64) -> usize {
    if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    }
}

/// Milliseconds with three or four digits.
pub fn ms(value: f64) -> String {
    format!(
        "{:.*}",
        if value >= 100.0 {
            1
        } else if value >= 1.0 {
            2
        } else {
            3
        },
        value
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_align_right_and_text_left() {
        let mut t = Table::new(&["name", "ms"]);
        t.row(["a".into(), "1.5".into()]);
        t.row(["long".into(), "10.25".into()]);
        t.row(["less".into(), "-1".into()]);
        assert_eq!(t.render(), "name     ms\na       1.5\nlong  10.25\nless     -1\n");
    }

    #[test]
    fn scales() {
        assert_eq!(scaled(1.5e9, "FLOP"), "1.50 GFLOP");
        assert_eq!(scaled(12.0, "B"), "12 B");
        assert_eq!(scaled(123_456.0, "B"), "123 kB");
    }
}
