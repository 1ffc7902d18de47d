//! `stats`: what containers use, drawn anew twice a second.

use super::App;
use crate::args::container::StatsArgs;
use crate::client::{Call, Client, ClientError, call::escape};
use crate::exit::{Failure, Outcome};
use crate::output::listing::{self, Layout};
use crate::output::template::Context;
use crate::output::value::Value;
use crate::output::{self, units};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Time from one drawing to the next.
const FRAME: Duration = Duration::from_millis(500);
/// Numbers that are older are not shown any more.
const STALE: Duration = Duration::from_secs(2);

const LAYOUT: Layout<'_> = Layout {
    columns: "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}",
    titles: &[
        ("Container", "CONTAINER"),
        ("Name", "NAME"),
        ("ID", "CONTAINER ID"),
        ("CPUPerc", "CPU %"),
        ("MemUsage", "MEM USAGE / LIMIT"),
        ("MemPerc", "MEM %"),
        ("NetIO", "NET I/O"),
        ("BlockIO", "BLOCK I/O"),
        ("PIDs", "PIDS"),
    ],
    quiet: "{{.ID}}",
};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Sample {
    name: String,
    id: String,
    cpu_stats: Cpu,
    precpu_stats: Cpu,
    memory_stats: Memory,
    blkio_stats: BlockIo,
    networks: Option<BTreeMap<String, Interface>>,
    pids_stats: Pids,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cpu {
    cpu_usage: CpuUsage,
    system_cpu_usage: u64,
    online_cpus: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CpuUsage {
    total_usage: u64,
    percpu_usage: Option<Vec<u64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Memory {
    usage: u64,
    limit: u64,
    stats: BTreeMap<String, u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct BlockIo {
    io_service_bytes_recursive: Option<Vec<BlockCount>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct BlockCount {
    op: String,
    value: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Interface {
    rx_bytes: u64,
    tx_bytes: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pids {
    current: u64,
}

/// What is shown of a container.
#[derive(Debug, Clone, Default, PartialEq)]
struct Usage {
    name: String,
    id: String,
    cpu: f64,
    memory: u64,
    limit: u64,
    network: (u64, u64),
    blocks: (u64, u64),
    pids: u64,
}

#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
impl Usage {
    fn of(sample: &Sample) -> Self {
        let now = &sample.cpu_stats;
        let cpu = now.cpu_usage.total_usage as f64 - sample.precpu_stats.cpu_usage.total_usage as f64;
        let system = now.system_cpu_usage as f64 - sample.precpu_stats.system_cpu_usage as f64;
        let online = match now.online_cpus {
            0 => now.cpu_usage.percpu_usage.as_ref().map_or(0, Vec::len) as f64,
            count => f64::from(count),
        };
        let cpu = if system > 0.0 && cpu > 0.0 { cpu / system * online * 100.0 } else { 0.0 };
        let memory = &sample.memory_stats;
        // Pages that only cache files and were not touched lately: "total_" on cgroup v1, without on v2.
        let inactive = ["total_inactive_file", "inactive_file"].iter().find_map(|name| memory.stats.get(*name));
        let cached = inactive.copied().filter(|cached| *cached < memory.usage).unwrap_or(0);
        let sum = |letters: [char; 2]| {
            let all = sample.blkio_stats.io_service_bytes_recursive.iter().flatten();
            all.filter(|count| count.op.starts_with(letters)).map(|count| count.value).sum()
        };
        let interfaces = sample.networks.iter().flat_map(BTreeMap::values);
        let network = interfaces.fold((0, 0), |(rx, tx), i| (rx + i.rx_bytes, tx + i.tx_bytes));
        Self {
            name: sample.name.trim_start_matches('/').to_owned(),
            id: sample.id.clone(),
            cpu,
            memory: memory.usage - cached,
            limit: memory.limit,
            network,
            blocks: (sum(['r', 'R']), sum(['w', 'W'])),
            pids: sample.pids_stats.current,
        }
    }

    fn memory_share(&self) -> f64 {
        if self.limit == 0 { 0.0 } else { self.memory as f64 / self.limit as f64 * 100.0 }
    }
}

/// A container that is watched.
#[derive(Debug)]
struct Watched {
    /// As it was asked for.
    container: String,
    last: Usage,
    /// What is shown is what is.
    valid: bool,
    error: Option<String>,
}

fn row(watched: &Watched, short: bool) -> Context {
    let usage = &watched.last;
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let or = |text: String, none: &str| Value::from(if watched.valid { text } else { none.to_owned() });
    let pair = |(a, b): (u64, u64)| format!("{} / {}", units::size(number(a), 3), units::size(number(b), 3));
    let memory = format!("{} / {}", units::binary_size(number(usage.memory)), units::binary_size(number(usage.limit)));
    let fields = Value::object([
        ("BlockIO", or(pair(usage.blocks), "--")),
        ("CPUPerc", or(format!("{:.2}%", usage.cpu), "--")),
        ("Container", watched.container.as_str().into()),
        ("ID", if short { units::short_id(&usage.id) } else { &usage.id }.into()),
        ("MemPerc", or(format!("{:.2}%", usage.memory_share()), "--")),
        ("MemUsage", or(memory, "-- / --")),
        ("Name", if usage.name.is_empty() { "--" } else { usage.name.as_str() }.into()),
        ("NetIO", or(pair(usage.network), "--")),
        ("PIDs", or(usage.pids.to_string(), "--")),
    ]);
    Context { fields, labels: Value::Null }
}

/// Runs `stats`.
pub async fn run(app: &App, args: &StatsArgs) -> Outcome {
    let client = app.client().await?;
    let board = Board { client, stream: !args.no_stream, shared: Arc::default() };
    let format = args.format.as_deref().or(app.config.stats_format());
    let print = |board: &Board, live: bool| -> Outcome {
        let rows: Vec<Context> = board.lock().rows.iter().map(|(watched, _)| row(watched, !args.no_trunc)).collect();
        let text = listing::render(&LAYOUT, format, false, &rows)?;
        output::print(&if live { redrawn(&text) } else { text })
    };
    let mut ready = Vec::new();
    let mut comings = None;
    if args.containers.is_empty() {
        if board.stream {
            comings = Some(board.follow(args.all).await?);
        }
        let call = Call::get("/containers/json").switch("all", args.all);
        for container in board.client.send(call).await?.value().await?.items() {
            ready.extend(board.watch(units::short_id(container.text(&["Id"]))));
        }
    } else {
        for name in &args.containers {
            ready.extend(board.watch(name));
        }
    }
    for mut first in ready {
        // Every container has a number, or an error, before anything is shown.
        let _ = first.wait_for(|is| *is).await;
    }
    if !args.containers.is_empty() {
        let errors: Vec<String> = board.lock().rows.iter().filter_map(|(watched, _)| watched.error.clone()).collect();
        if !errors.is_empty() {
            return Err(Failure::Several(errors));
        }
    }
    if args.no_stream {
        return print(&board, false);
    }
    let mut ticks = tokio::time::interval(FRAME);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        print(&board, true)?;
        let rows = &board.lock().rows;
        let over = !rows.is_empty() && rows.iter().all(|(watched, task)| !watched.valid && task.is_finished());
        if comings.is_none() && over {
            return Ok(());
        }
        if comings.as_ref().is_some_and(JoinHandle::is_finished) {
            return Err(Failure::Refused("the engine has closed its stream of events".to_owned()));
        }
    }
}

/// The same text over the one before it, as one write: nothing flickers, and what was longer is gone.
fn redrawn(text: &str) -> String {
    let lines: String = text.lines().map(|line| format!("{line}\x1b[K\n")).collect();
    format!("\x1b[H{lines}\x1b[J")
}

#[derive(Debug, Default)]
struct Rows {
    rows: Vec<(Watched, JoinHandle<()>)>,
}

#[derive(Debug, Clone)]
struct Board {
    client: Client,
    stream: bool,
    shared: Arc<Mutex<Rows>>,
}

impl Board {
    fn lock(&self) -> std::sync::MutexGuard<'_, Rows> {
        // A thread that panicked while it held the lock left whole rows.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches a container, unless it is watched; the answer tells when there is something to show.
    fn watch(&self, container: &str) -> Option<watch::Receiver<bool>> {
        let mut shared = self.lock();
        if shared.rows.iter().any(|(watched, _)| watched.container == container) {
            return None;
        }
        let (ready, receiver) = watch::channel(false);
        let (board, name) = (self.clone(), container.to_owned());
        let task = tokio::spawn(async move {
            if let Err(error) = board.collect(&name, &ready).await {
                board.update(&name, |watched| watched.error = Some(error.to_string()));
            }
            board.update(&name, |watched| watched.valid &= !board.stream);
            ready.send_replace(true);
        });
        let watched = Watched { container: container.to_owned(), last: Usage::default(), valid: false, error: None };
        shared.rows.push((watched, task));
        Some(receiver)
    }

    fn forget(&self, container: &str) {
        self.lock().rows.retain(|(watched, task)| {
            let keep = watched.container != container;
            if !keep {
                task.abort();
            }
            keep
        });
    }

    fn update(&self, container: &str, change: impl FnOnce(&mut Watched)) {
        if let Some((watched, _)) = self.lock().rows.iter_mut().find(|(watched, _)| watched.container == container) {
            change(watched);
        }
    }

    async fn collect(&self, name: &str, ready: &watch::Sender<bool>) -> Result<(), ClientError> {
        let call = Call::get(format!("/containers/{}/stats", escape(name, false)))
            .query("stream", if self.stream { "1" } else { "0" });
        let mut reply = self.client.send(call).await?;
        loop {
            let next = tokio::time::timeout(STALE, reply.object::<Sample>());
            // Reading a line can be taken up again where it was left.
            match next.await {
                Err(_) if self.stream => {
                    self.update(name, |watched| watched.valid = false);
                    ready.send_replace(true);
                }
                Err(_) => {}
                Ok(sample) => match sample? {
                    None => return Ok(()),
                    Some(sample) => {
                        self.update(name, |watched| (watched.last, watched.valid) = (Usage::of(&sample), true));
                        ready.send_replace(true);
                        if !self.stream {
                            return Ok(());
                        }
                    }
                },
            }
        }
    }

    /// Containers that come and go meanwhile.
    async fn follow(&self, all: bool) -> Outcome<JoinHandle<()>> {
        let call = Call::get("/events").filters(&[("type".to_owned(), "container".to_owned())]);
        let mut events = self.client.send(call).await?;
        let board = self.clone();
        Ok(tokio::spawn(async move {
            while let Ok(Some(event)) = events.object::<Value>().await {
                let id = units::short_id(event.text(&["Actor", "ID"]));
                match event.text(&["Action"]) {
                    "create" if all => _ = board.watch(id),
                    "start" => _ = board.watch(id),
                    "die" if !all => board.forget(id),
                    "destroy" => board.forget(id),
                    _ => {}
                }
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"{"name":"/web","id":"0123456789abcdef",
        "cpu_stats":{"cpu_usage":{"total_usage":300,"percpu_usage":[1,2]},"system_cpu_usage":2000,"online_cpus":4},
        "precpu_stats":{"cpu_usage":{"total_usage":200},"system_cpu_usage":1000},
        "memory_stats":{"usage":5000,"limit":10000,"stats":{"total_inactive_file":1000}},
        "blkio_stats":{"io_service_bytes_recursive":[{"op":"Read","value":5},{"op":"write","value":7},{"op":"Total","value":12}]},
        "networks":{"eth0":{"rx_bytes":10,"tx_bytes":1},"eth1":{"rx_bytes":5,"tx_bytes":2}},"pids_stats":{"current":3}}"#;

    #[test]
    fn numbers_are_dockers() {
        let usage = Usage::of(&serde_json::from_str(SAMPLE).unwrap());
        assert!((usage.cpu - 40.0).abs() < 1e-9 && (usage.memory_share() - 40.0).abs() < 1e-9, "{usage:?}");
        assert_eq!((usage.memory, usage.network, usage.blocks, usage.pids), (4000, (15, 3), (5, 7), 3));
        let v2 = r#"{"memory_stats":{"usage":5000,"limit":0,"stats":{"inactive_file":6000}},"blkio_stats":{"io_service_bytes_recursive":null}}"#;
        let usage = Usage::of(&serde_json::from_str(v2).unwrap());
        assert_eq!((usage.memory, usage.memory_share()), (5000, 0.0), "cache beyond the usage is not believed");
    }

    #[test]
    fn rows_show_what_is_known() {
        let last = Usage::of(&serde_json::from_str(SAMPLE).unwrap());
        let mut watched = Watched { container: "web".into(), last, valid: true, error: None };
        let shown = |watched: &Watched| {
            let row = row(watched, true);
            ["ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"]
                .map(|field| row.fields.text(&[field]).to_owned())
                .join("|")
        };
        assert_eq!(shown(&watched), "0123456789ab|web|40.00%|3.906KiB / 9.766KiB|40.00%|15B / 3B|5B / 7B|3");
        watched.valid = false;
        assert_eq!(shown(&watched), "0123456789ab|web|--|-- / --|--|--|--|--");
        assert_eq!(redrawn("a\nb\n"), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
    }
}
