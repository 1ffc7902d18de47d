//! Tables as docker aligns them: columns at least ten wide, three blanks apart, the last one ragged.

const NARROWEST: usize = 10;
const GAP: usize = 3;

/// Aligns rows of cells; every row ends with a line feed.
pub fn align(rows: &[Vec<String>]) -> String {
    align_wide(rows, NARROWEST)
}

/// The same with another least width of columns.
pub fn align_wide(rows: &[Vec<String>], narrowest: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut widths = vec![0; columns];
    for row in rows {
        // The last cell of a row is not part of a column: it pushes nothing to the right.
        for (cell, width) in row.iter().zip(&mut widths).take(row.len().saturating_sub(1)) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        for (at, cell) in row.iter().enumerate() {
            out.push_str(cell);
            if at + 1 < row.len() {
                let width = (widths[at] + GAP).max(narrowest);
                out.extend(std::iter::repeat_n(' ', width - cell.chars().count()));
            }
        }
        out.push('\n');
    }
    out
}

/// Aligns lines whose cells are separated by tabs.
pub fn align_tabs(text: &str) -> String {
    let rows: Vec<Vec<String>> = text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect();
    align(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let text = "REPOSITORY\tTAG\tSIZE\nbusybox\tlatest\t1.98MB\nverylongname12\tx…\t1B\n";
        assert_eq!(
            align_tabs(text),
            "REPOSITORY       TAG       SIZE\nbusybox          latest    1.98MB\nverylongname12   x…        1B\n"
        );
        assert_eq!(align_tabs("A\t\tB\n"), "A                   B\n");
        assert_eq!(align(&[]), "");
    }
}
