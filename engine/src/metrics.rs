//! What an operator watches: counters that cost an atomic addition each, written as Prometheus reads them when it asks. Names are
//! dockerd's (`engine_daemon_…`) where it has the same number, ours (`berth_engine_…`) where not.

use crate::{
    app::App, config::Address, containers::record::Phase, listen::ListenError, networks::names::Counters, tide::Tide,
};
use axum::{body::Body, http::Method, response::Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use std::{
    convert::Infallible,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};

/// Upper ends of the buckets, in seconds: dockerd's.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Actions on containers that are timed, as dockerd calls them, with their method and the end of their path.
const ACTIONS: [(&str, &str, &str); 5] = [
    ("changes", "GET", "/changes"),
    ("commit", "POST", "/commit"),
    ("create", "POST", "/containers/create"),
    ("delete", "DELETE", ""),
    ("start", "POST", "/start"),
];
/// Scrapers that are served at once.
const SCRAPERS: usize = 8;

/// Times of one kind of thing.
#[derive(Debug, Default)]
struct Times {
    buckets: [AtomicU64; BUCKETS.len()],
    count: AtomicU64,
    micros: AtomicU64,
}

impl Times {
    fn add(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        if let Some(bucket) = BUCKETS.iter().position(|end| seconds <= *end) {
            self.buckets[bucket].fetch_add(1, Relaxed);
        }
        self.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
        self.count.fetch_add(1, Relaxed);
    }

    fn write(&self, page: &mut String, name: &str, labels: &str) {
        let mut sum = 0;
        for (end, count) in BUCKETS.iter().zip(&self.buckets) {
            sum += count.load(Relaxed);
            let _ = writeln!(page, "{name}_bucket{{{labels},le=\"{end}\"}} {sum}");
        }
        let count = self.count.load(Relaxed);
        let seconds = self.micros.load(Relaxed) as f64 / 1e6;
        let _ = writeln!(page, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(page, "{name}_sum{{{labels}}} {seconds}\n{name}_count{{{labels}}} {count}");
    }
}

/// All counters of an engine.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Connections of clients that are open.
    pub connections: AtomicU64,
    /// Their highs and lows.
    pub tide: Tide,
    /// Requests whose handler panicked.
    pub panics: AtomicU64,
    /// What the budgets have freed, in bytes, and how often.
    pub freed: AtomicU64,
    /// How often images were over their budget.
    pub cleanups: AtomicU64,
    statuses: [AtomicU64; 6],
    actions: [Times; ACTIONS.len()],
}

impl Metrics {
    /// Notes a request that has been answered.
    pub fn answered(&self, method: &Method, path: &str, status: u16, took: Duration) {
        self.statuses[usize::from(status / 100).min(5)].fetch_add(1, Relaxed);
        if !(200..400).contains(&status) {
            return;
        }
        let of_containers = path.starts_with("/containers/") || path == "/commit";
        let action = ACTIONS.iter().position(|(_, wanted, end)| {
            of_containers
                && method.as_str() == *wanted
                && path.ends_with(end)
                && (!end.is_empty() || path.matches('/').count() == 2)
        });
        if let Some(action) = action {
            self.actions[action].add(took);
        }
    }
}

/// The whole page. May wait for the resolver of names: call it off the async threads.
pub fn page(app: &App) -> String {
    let mut page = String::new();
    let metrics = &app.metrics;
    let uname = nix::sys::utsname::uname().ok();
    let word = |text: Option<&std::ffi::OsStr>| escape(&text.map(|t| t.to_string_lossy()).unwrap_or_default());
    let info = format!(
        "architecture=\"{}\",commit=\"\",daemon_id=\"{}\",graphdriver=\"{}\",kernel=\"{}\",os=\"{}\",os_type=\"linux\",os_version=\"{}\",version=\"{}\"",
        std::env::consts::ARCH,
        app.identity.id,
        escape(app.supervisor.snapshotter()),
        word(uname.as_ref().map(|u| u.release())),
        escape(&crate::http::system::operating_system("PRETTY_NAME")),
        escape(&crate::http::system::operating_system("VERSION_ID")),
        env!("CARGO_PKG_VERSION"),
    );
    head(&mut page, "engine_daemon_engine_info", "gauge", "This engine and its host.");
    let _ = writeln!(page, "engine_daemon_engine_info{{{info}}} 1");
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    one(&mut page, "engine_daemon_engine_cpus_cpus", "gauge", "Processors of the host.", cpus as f64);
    let memory = crate::http::system::total_memory();
    one(&mut page, "engine_daemon_engine_memory_bytes", "gauge", "Memory of the host.", memory as f64);

    head(&mut page, "engine_daemon_container_states_containers", "gauge", "Containers by state.");
    let (mut running, mut paused, mut stopped) = (0, 0, 0);
    for container in app.containers.all() {
        match container.live().record.state.phase {
            Phase::Running | Phase::Restarting => running += 1,
            Phase::Paused => paused += 1,
            _ => stopped += 1,
        }
    }
    for (state, count) in [("paused", paused), ("running", running), ("stopped", stopped)] {
        let _ = writeln!(page, "engine_daemon_container_states_containers{{state=\"{state}\"}} {count}");
    }
    head(&mut page, "engine_daemon_container_actions_seconds", "histogram", "Time that actions on containers took.");
    for ((action, ..), times) in ACTIONS.iter().zip(&metrics.actions) {
        times.write(&mut page, "engine_daemon_container_actions_seconds", &format!("action=\"{action}\""));
    }
    let subscribers = app.events.listeners() as f64;
    one(&mut page, "engine_daemon_events_subscribers_total", "gauge", "Who follows events.", subscribers);

    let count = |counter: &AtomicU64| counter.load(Relaxed) as f64;
    head(&mut page, "berth_engine_requests_total", "counter", "Requests answered, by class of status.");
    for (class, counter) in metrics.statuses.iter().enumerate().skip(1) {
        let _ = writeln!(page, "berth_engine_requests_total{{status=\"{class}xx\"}} {}", counter.load(Relaxed));
    }
    one(&mut page, "berth_engine_connections", "gauge", "Connections of clients.", count(&metrics.connections));
    one(&mut page, "berth_engine_panics_total", "counter", "Requests that met a defect.", count(&metrics.panics));
    one(&mut page, "berth_engine_cleanups_total", "counter", "Clean-ups by a budget.", count(&metrics.cleanups));
    one(&mut page, "berth_engine_cleanup_freed_bytes_total", "counter", "Bytes they freed.", count(&metrics.freed));
    if let Some(names) = app.networks.names().counters() {
        write_names(&mut page, &names);
    }
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    one(&mut page, "berth_engine_tasks", "gauge", "Tasks of the engine.", tasks as f64);
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    one(&mut page, "process_open_fds", "gauge", "Open descriptors.", files as f64);
    one(&mut page, "process_resident_memory_bytes", "gauge", "Memory of the engine.", resident() as f64);
    one(&mut page, "process_start_time_seconds", "gauge", "When it started.", app.started.seconds() as f64);
    page
}

/// What the resolver has done, which counts from when it was started.
fn write_names(page: &mut String, names: &Counters) {
    head(page, "berth_engine_dns_questions_total", "counter", "Questions for names, by what became of them.");
    for (result, count) in [
        ("answered", names.answered),
        ("cached", names.cached),
        ("dropped", names.dropped),
        ("failed", names.failed),
        ("forwarded", names.forwarded),
    ] {
        let _ = writeln!(page, "berth_engine_dns_questions_total{{result=\"{result}\"}} {count}");
    }
}

fn head(page: &mut String, name: &str, kind: &str, help: &str) {
    let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

fn one(page: &mut String, name: &str, kind: &str, help: &str, value: f64) {
    head(page, name, kind, help);
    let _ = writeln!(page, "{name} {value}");
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Bytes of memory that are the engine's.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// `GET /debug/vars`: what Go programs show there, as far as it means something here.
pub fn variables(app: &App) -> Value {
    let line: Vec<String> = std::env::args().collect();
    json!({
        "cmdline": line,
        "memstats": {"Sys": resident()},
        "tasks": tokio::runtime::Handle::current().metrics().num_alive_tasks(),
        "connections": app.metrics.connections.load(Relaxed),
        "containers": app.containers.all().len(),
        "events": {"subscribers": app.events.listeners()},
        "panics": app.metrics.panics.load(Relaxed),
    })
}

/// Where scrapers come in.
#[derive(Debug)]
pub enum Entrance {
    /// A port.
    Tcp(TcpListener),
    /// A file.
    Unix(UnixListener),
}

/// Takes the address.
pub async fn bind(address: &Address) -> Result<Entrance, ListenError> {
    match address {
        Address::Unix(path) => {
            // Ours of an earlier life: nobody else has a business there.
            let _ = std::fs::remove_file(path);
            let bound = UnixListener::bind(path);
            bound.map(Entrance::Unix).map_err(|cause| ListenError::Listen { path: path.clone(), cause })
        }
        Address::Tcp(at) => {
            let bound = TcpListener::bind(at).await;
            bound.map(Entrance::Tcp).map_err(|cause| ListenError::Listen { path: at.into(), cause })
        }
        Address::Passed(name) => Err(ListenError::NotPassed(name.clone())),
    }
}

/// Serves `GET /metrics` for as long as the engine lives.
pub async fn serve(entrance: Entrance, app: Arc<App>) {
    let places = Arc::new(Semaphore::new(SCRAPERS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let app = app.clone();
        let met = match &entrance {
            Entrance::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(async move {
                    answer(stream, app).await;
                    drop(place);
                })
            }),
            Entrance::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(async move {
                    answer(stream, app).await;
                    drop(place);
                })
            }),
        };
        if let Err(error) = met {
            tracing::warn!(%error, "scraper not accepted");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, app: Arc<App>) {
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let found = request.method() == Method::GET && request.uri().path() == "/metrics";
        let app = app.clone();
        async move {
            let written = if found { tokio::task::spawn_blocking(move || page(&app)).await.ok() } else { None };
            let response = Response::builder()
                .status(if written.is_some() { 200 } else { 404 })
                .header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                .body(Body::from(written.unwrap_or_else(|| "metrics are at /metrics\n".to_owned())))
                .unwrap_or_default();
            Ok::<_, Infallible>(response)
        }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    // Who connects and says nothing keeps nobody else out for long.
    server.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(5)).keep_alive(false);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "scraper left");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_are_told_apart() {
        let metrics = Metrics::default();
        for (method, path, status) in [
            ("POST", "/containers/create", 201),
            ("POST", "/containers/x/start", 204),
            ("POST", "/containers/x/start", 404),
            ("DELETE", "/containers/x", 204),
            ("DELETE", "/images/x", 200),
            ("POST", "/commit", 201),
            ("GET", "/containers/x/changes", 200),
            ("POST", "/exec/x/start", 101),
        ] {
            metrics.answered(&method.parse().unwrap(), path, status, Duration::from_millis(20));
        }
        let counts: Vec<u64> = metrics.actions.iter().map(|times| times.count.load(Relaxed)).collect();
        assert_eq!(counts, [1, 1, 1, 1, 1]);
        let mut names = String::new();
        write_names(&mut names, &Counters { answered: 7, dropped: 1, ..Counters::default() });
        assert!(names.contains("\nberth_engine_dns_questions_total{result=\"answered\"} 7\n"), "{names}");
        assert!(
            names.ends_with("{result=\"failed\"} 0\nberth_engine_dns_questions_total{result=\"forwarded\"} 0\n"),
            "{names}"
        );
        let classes: Vec<u64> = metrics.statuses.iter().map(|count| count.load(Relaxed)).collect();
        assert_eq!(classes, [0, 1, 6, 0, 1, 0]);
        let mut text = String::new();
        metrics.actions[4].write(&mut text, "n", "action=\"start\"");
        assert!(
            text.contains("n_bucket{action=\"start\",le=\"0.01\"} 0\nn_bucket{action=\"start\",le=\"0.025\"} 1\n"),
            "{text}"
        );
        assert!(text.ends_with("n_sum{action=\"start\"} 0.02\nn_count{action=\"start\"} 1\n"), "{text}");
    }
}
