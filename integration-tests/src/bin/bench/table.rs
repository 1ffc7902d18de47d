//! The table of results.

use std::time::{Duration, Instant};

/// Rows of work, columns of who did it.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    work: String,
    unit: &'static str,
    berth: Option<f64>,
    peers: Vec<(String, Option<f64>)>,
    goal: String,
}

impl Table {
    /// Adds a row; `None` where somebody could not do the work. `goal` is what design.md section 4 asks for.
    pub fn row(
        &mut self,
        work: &str,
        unit: &'static str,
        berth: Option<f64>,
        peers: &[(&str, Option<f64>)],
        goal: &str,
    ) {
        let peers = peers.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        eprintln!("measured: {work}");
        self.rows.push(Row { work: work.to_owned(), unit, berth, peers, goal: goal.to_owned() });
    }

    /// Prints it as markdown: figure and ratio (Berth divided by the peer) per peer.
    pub fn print(&self) {
        if self.rows.is_empty() {
            return; // measured, and printed, by a process of its own
        }
        println!("| work | berth | peers (ratio berth/peer) | goal |\n|---|---|---|---|");
        for row in &self.rows {
            let figure = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{} {}", round(v), row.unit));
            let peers: Vec<_> = row
                .peers
                .iter()
                .map(|(name, value)| match (row.berth, value) {
                    (Some(ours), Some(theirs)) if *theirs > 0.0 => {
                        format!("{name} {} ({:.2})", figure(*value), ours / theirs)
                    }
                    _ => format!("{name} {}", figure(*value)),
                })
                .collect();
            println!("| {} | {} | {} | {} |", row.work, figure(row.berth), peers.join("; "), row.goal);
        }
    }
}

fn round(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// The median time of `count` runs of `work`, in milliseconds; `None` as soon as one fails.
pub fn median(count: usize, mut work: impl FnMut() -> bool) -> Option<f64> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        times.push(timed(&mut work)?);
    }
    times.sort_by(f64::total_cmp);
    Some(times[times.len() / 2])
}

/// The medians of several works done in turns, `count` times each after one that doesn't count; `None` for one that failed.
pub fn interleaved<'a>(count: usize, mut works: Vec<Box<dyn FnMut() -> bool + 'a>>) -> Vec<Option<f64>> {
    let mut times: Vec<Option<Vec<f64>>> = works.iter_mut().map(|work| work().then(Vec::new)).collect();
    for _ in 0..count {
        for (work, times) in works.iter_mut().zip(&mut times) {
            if let Some(list) = times {
                match timed(work) {
                    Some(time) => list.push(time),
                    None => *times = None,
                }
            }
        }
    }
    let middle = |mut list: Vec<f64>| {
        list.sort_by(f64::total_cmp);
        list[list.len() / 2]
    };
    times.into_iter().map(|list| list.map(middle)).collect()
}

/// The time of one run in milliseconds; `None` if it fails.
pub fn timed(mut work: impl FnMut() -> bool) -> Option<f64> {
    let begun = Instant::now();
    work().then(|| begun.elapsed().mul_f64(1000.0).as_secs_f64())
}

/// Proportional set size in MB of the processes given (proc(5), smaps_rollup).
pub fn pss_mb(pids: &[u32]) -> f64 {
    let of = |pid: &u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("Pss:")).unwrap_or("0");
        line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap_or(0.0)
    };
    pids.iter().map(of).sum::<f64>() / 1000.0
}

/// CPU time that processes have used, threads that have ended included, in milliseconds (proc_pid_stat, fields 14 and 15, in
/// hundredths of a second).
pub fn cpu_ms(pids: &[u32]) -> f64 {
    let of = |pid: &u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name, field 2, ends with the last bracket.
        let fields = text.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').skip(11).take(2);
        fields.filter_map(|word| word.parse::<f64>().ok()).sum::<f64>() * 10.0
    };
    pids.iter().map(of).sum()
}

/// Waits a moment for things to settle before a measurement of something at rest.
pub fn settle() {
    std::thread::sleep(Duration::from_secs(2));
}
