//! Lines for a terminal of a given size. Pure: what is drawn depends on the board, the size and the time only.
//!
//! As long as every layer has a line, each keeps its own. When there are more layers than lines, those that are done are one
//! line, those that wait are one line, and the rest of the room is for what moves. Narrow terminals lose the bar first, then
//! the numbers; a line never wraps.

use super::board::{Board, Line, Total};
use crate::output::units;
use std::time::Duration;

/// Size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Characters of a line.
    pub columns: usize,
    /// Lines.
    pub rows: usize,
}

/// A bar that is shorter says less than the numbers beside it.
const SHORTEST_BAR: usize = 10;
const LONGEST_BAR: usize = 50;

/// The lines of a frame; with `end`, of the last one.
pub fn render(board: &Board, size: Size, at: Duration, end: bool) -> Vec<String> {
    // The last column stays free: whatever stands there makes terminals wrap. The last row is the cursor's.
    let (columns, rows) = (size.columns.saturating_sub(1).max(1), size.rows.saturating_sub(1).max(1));
    let lines = board.lines();
    let mut total = board.total(at).map(|total| total_text(&total, columns, end));
    if lines.len() <= rows && lines.len() + usize::from(total.is_some()) > rows {
        // A line per layer is worth more than their sum.
        total = None;
    }
    let room = rows - usize::from(total.is_some() && rows > 1);
    let mut out = if lines.len() <= room {
        layer_lines(&lines.iter().collect::<Vec<_>>(), columns)
    } else {
        collapsed(lines, columns, room)
    };
    out.extend(total.filter(|_| rows > 1));
    out
}

fn collapsed(lines: &[Line], columns: usize, room: usize) -> Vec<String> {
    let (all, done) = (lines.len(), lines.iter().filter(|line| line.done).count());
    let summary = first_that_fits(
        columns,
        [format!("{done} of {all} layers complete"), format!("{done}/{all} complete"), format!("{done}/{all}")],
    );
    let (moving, waiting): (Vec<&Line>, Vec<&Line>) =
        lines.iter().filter(|line| !line.done).partition(|line| line.total > 0 || line.current > 0);
    let mut out = Vec::new();
    if done > 0 || room == 1 {
        out.push(summary);
    }
    let mut rest = moving;
    rest.extend(waiting);
    let room = room - out.len();
    if rest.len() <= room {
        out.extend(layer_lines(&rest, columns));
    } else if room > 0 {
        out.extend(layer_lines(&rest[..room - 1], columns));
        let more = rest.len() - (room - 1);
        out.push(first_that_fits(
            columns,
            [format!("{more} more waiting or under way"), format!("{more} more"), format!("+{more}")],
        ));
    }
    out
}

fn layer_lines(lines: &[&Line], columns: usize) -> Vec<String> {
    // Bars stand below one another.
    let width = lines.iter().filter(|l| has_bar(l)).map(|line| line.status.chars().count()).max().unwrap_or(0);
    lines.iter().map(|line| layer_text(line, width, columns)).collect()
}

fn has_bar(line: &Line) -> bool {
    line.total > 0 && line.current <= line.total && !line.done
}

fn layer_text(line: &Line, status_width: usize, columns: usize) -> String {
    let Line { id, status, .. } = line;
    let plain = format!("{id}: {status}");
    if line.done || line.total <= 0 && line.current <= 0 {
        return first_that_fits(columns, [plain, format!("{} {status}", short(id))]);
    }
    let number = |n: i64| match line.units.as_str() {
        "" => units::size(n, 4),
        unit => format!("{n} {unit}"),
    };
    if !has_bar(line) {
        // Without a total, or beyond one that was a guess.
        let counted = format!("{plain} {:>8}", number(line.current));
        return first_that_fits(columns, [counted, plain, short(id).to_owned()]);
    }
    let counts = match line.units.as_str() {
        _ if line.hidden => String::new(),
        "" => format!(" {:>8}/{}", number(line.current), number(line.total)),
        unit => format!(" {}/{} {unit}", line.current, line.total),
    };
    let head = format!("{id}: {status:status_width$} ");
    // The numbers keep their place while they grow.
    let taken = head.chars().count() + 2 + counts.chars().count().max(18);
    let percent = i128::from(line.current) * 100 / i128::from(line.total);
    if columns >= taken + SHORTEST_BAR {
        return format!("{head}{}{counts}", bar(line.current, line.total, (columns - taken).min(LONGEST_BAR)));
    }
    first_that_fits(
        columns,
        [
            format!("{id}: {status:status_width$}{counts}"),
            format!("{plain} {percent}%"),
            format!("{id} {percent:>3}%"),
            format!("{} {percent:>3}%", short(id)),
        ],
    )
}

/// "[=====>     ]"
fn bar(current: i64, total: i64, width: usize) -> String {
    let full =
        usize::try_from(i128::from(current) * i128::try_from(width).unwrap_or(0) / i128::from(total)).unwrap_or(0);
    let head = if full < width { ">" } else { "" };
    format!("[{}{head}{}]", "=".repeat(full), " ".repeat(width - full - head.len()))
}

fn total_text(total: &Total, columns: usize, end: bool) -> String {
    let amount = |bytes: i64| units::size(bytes, 4);
    #[expect(clippy::cast_possible_truncation, reason = "saturates, and three digits are shown")]
    let rate_text = |rate: f64| format!("{}/s", units::size(rate as i64, 3));
    if end {
        let moved = format!("Total: {}", amount(total.moved));
        let spent = total.spent.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
        let rate = rate_text(total.moved as f64 / spent.max(0.001));
        return first_that_fits(
            columns,
            [format!("{moved} in {spent:.1}s ({rate})"), format!("{moved} in {spent:.1}s"), moved],
        );
    }
    let Some(size) = total.size else {
        let moved = format!("Total: {}", amount(total.moved));
        let rate = total.rate.map(|rate| format!("{moved} so far, {}", rate_text(rate)));
        return first_that_fits(columns, rate.into_iter().chain([format!("{moved} so far"), moved]));
    };
    let percent = i128::from(total.moved) * 100 / i128::from(size.max(1));
    let counts = format!("Total: {}/{}", amount(total.moved), amount(size));
    let mut choices = Vec::new();
    if let Some(rate) = total.rate {
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "seconds are shown")]
        let left = time_text(((size - total.moved).max(0) as f64 / rate).ceil() as i64);
        choices.push(format!("{counts} {percent}%, {}, {left} left", rate_text(rate)));
        choices.push(format!("{counts} {percent}%, {}", rate_text(rate)));
    }
    choices.extend([format!("{counts} {percent}%"), counts, format!("Total: {percent}%"), format!("{percent}%")]);
    first_that_fits(columns, choices)
}

fn time_text(seconds: i64) -> String {
    match seconds {
        ..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

fn short(id: &str) -> &str {
    id.get(..6).unwrap_or(id)
}

/// The first choice that is not too wide; the last one is cut.
fn first_that_fits(columns: usize, choices: impl IntoIterator<Item = String>) -> String {
    let mut last = String::new();
    for choice in choices {
        if choice.chars().count() <= columns {
            return choice;
        }
        last = choice;
    }
    units::ellipsis(&last, columns)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::message, *};
    use proptest::prelude::*;

    fn feed(board: &mut Board, id: &str, status: &str, current: i64, total: i64) {
        let json =
            format!(r#"{{"status":"{status}","id":"{id}","progressDetail":{{"current":{current},"total":{total}}}}}"#);
        board.update(id, &message(&json), Duration::ZERO);
    }

    /// Three layers: one half done, one unpacking, one there already.
    fn few() -> Board {
        let mut board = Board::default();
        feed(&mut board, "0123456789ab", "Downloading", 0, 20_000_000);
        board.sample(Duration::ZERO);
        feed(&mut board, "0123456789ab", "Downloading", 10_000_000, 20_000_000);
        feed(&mut board, "123456789abc", "Downloading", 0, 1);
        feed(&mut board, "123456789abc", "Extracting", 1_000, 3_000);
        feed(&mut board, "23456789abcd", "Already exists", 0, 0);
        board
    }

    /// Forty: ten done, six moving, the rest waiting.
    fn many() -> Board {
        let mut board = Board::default();
        for n in 0..40 {
            let id = format!("{n:012}");
            match n {
                0..10 => {
                    feed(&mut board, &id, "Downloading", 1_000, 1_000);
                    feed(&mut board, &id, "Pull complete", 0, 0);
                }
                10..16 => feed(&mut board, &id, "Downloading", 500, 1_000),
                _ => feed(&mut board, &id, "Waiting", 0, 0),
            }
        }
        board
    }

    fn frame(board: &Board, columns: usize, rows: usize) -> Vec<String> {
        let lines = render(board, Size { columns, rows }, Duration::from_secs(2), false);
        for line in &lines {
            assert!(line.chars().count() < columns, "{columns} columns: {line:?} wraps");
        }
        assert!(lines.len() < rows.max(2), "{rows} rows: {lines:#?}");
        lines
    }

    #[test]
    fn every_width() {
        assert_eq!(
            frame(&few(), 200, 24),
            [
                format!("0123456789ab: Downloading [{}>{}]     10MB/20MB", "=".repeat(25), " ".repeat(24)),
                format!("123456789abc: Extracting  [{}>{}]      1kB/3kB", "=".repeat(16), " ".repeat(33)),
                "23456789abcd: Already exists".to_owned(),
                "Total: 10MB/20MB 50%, 5MB/s, 2s left".to_owned(),
            ]
        );
        assert_eq!(
            frame(&few(), 80, 24),
            [
                "0123456789ab: Downloading [================>                ]     10MB/20MB",
                "123456789abc: Extracting  [===========>                     ]      1kB/3kB",
                "23456789abcd: Already exists",
                "Total: 10MB/20MB 50%, 5MB/s, 2s left",
            ]
        );
        assert_eq!(
            frame(&few(), 40, 24),
            [
                "0123456789ab: Downloading     10MB/20MB",
                "123456789abc: Extracting       1kB/3kB",
                "23456789abcd: Already exists",
                "Total: 10MB/20MB 50%, 5MB/s, 2s left",
            ]
        );
        assert_eq!(
            frame(&few(), 20, 24),
            ["0123456789ab  50%", "123456789abc  33%", "234567 Already exi…", "Total: 10MB/20MB"]
        );
    }

    #[test]
    fn more_layers_than_lines() {
        let shown = frame(&many(), 80, 24);
        assert_eq!(shown[0], "10 of 40 layers complete");
        assert!(
            shown[1].starts_with("000000000010: Downloading [") && shown[6].starts_with("000000000015: Down"),
            "{shown:#?}"
        );
        assert_eq!(shown[7], "000000000016: Waiting");
        assert_eq!((shown.len(), shown[21].as_str()), (23, "10 more waiting or under way"));
        assert_eq!(shown[22], "Total: 13kB so far");
        let shown = frame(&many(), 40, 5);
        assert_eq!(
            shown,
            [
                "10 of 40 layers complete",
                "000000000010: Downloading     500B/1kB",
                "29 more waiting or under way",
                "Total: 13kB so far",
            ]
        );
        assert_eq!(frame(&many(), 20, 5), ["10/40 complete", "000000000010  50%", "29 more", "Total: 13kB so far"]);
        assert_eq!(frame(&many(), 200, 5).len(), 4);
        // Terminals that are hardly any.
        for (columns, rows) in [(200, 2), (20, 2), (80, 1), (2, 1), (1, 1), (3, 5)] {
            assert_eq!(
                render(&many(), Size { columns, rows }, Duration::ZERO, false).len(),
                rows.saturating_sub(1).clamp(1, 4)
            );
        }
    }

    #[test]
    fn the_last_frame_tells_what_it_took() {
        let mut board = few();
        feed(&mut board, "0123456789ab", "Pull complete", 0, 0);
        feed(&mut board, "123456789abc", "Pull complete", 0, 0);
        let lines = render(&board, Size { columns: 80, rows: 24 }, Duration::from_secs(4), true);
        assert_eq!(
            lines,
            [
                "0123456789ab: Pull complete",
                "123456789abc: Pull complete",
                "23456789abcd: Already exists",
                "Total: 20MB in 4.0s (5MB/s)",
            ]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Whatever is under way on whatever terminal: no line wraps, and no more lines than there are.
        #[test]
        fn every_frame_fits(
            columns in 1usize..220,
            rows in 1usize..60,
            seconds in 0u64..5,
            end in any::<bool>(),
            steps in proptest::collection::vec(
                ("[a-f]{1,2}|[0-9a-f]{12}|\\PC{0,4}", "Downloading|Extracting|Pull complete|Waiting|Pushing|\\PC{0,30}", -5i64..i64::MAX / 64, -5i64..i64::MAX / 64),
                0..80,
            ),
        ) {
            let mut board = Board::default();
            board.sample(Duration::ZERO);
            for (id, status, current, total) in steps {
                let json = serde_json::json!({"status": status, "id": id, "progressDetail": {"current": current, "total": total}});
                board.update(&id, &message(&json.to_string()), Duration::ZERO);
            }
            let lines = render(&board, Size { columns, rows }, Duration::from_secs(seconds), end);
            prop_assert!(lines.len() <= rows.saturating_sub(1).max(1), "{:?}", lines);
            for line in lines {
                prop_assert!(line.chars().count() <= columns.saturating_sub(1).max(1), "{:?}", line);
            }
        }
    }

    #[test]
    fn times() {
        assert_eq!([5, 65, 3_700].map(time_text), ["5s", "1m05s", "1h01m"]);
        assert_eq!((bar(0, 9, 3), bar(9, 9, 3)), ("[>  ]".to_owned(), "[===]".to_owned()));
    }
}
