//! Answers `GET /metrics`: the counters, and the state of things at this moment.

use std::{collections::BTreeMap, convert::Infallible, io, os::unix::fs::FileTypeExt as _, sync::Arc};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use proto::kind::chain;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
};

use super::{METRICS, Relaxed, text::Kind, text::Page};
use crate::{
    api::version::VERSION,
    config::MetricsAddress,
    events::EventBus,
    store::{StoreError, Stores},
    tasks::Tasks,
};

/// Who is asked.
#[derive(Clone)]
pub(crate) struct Sources {
    /// What runs.
    pub(crate) tasks: Arc<Tasks>,
    /// What is kept.
    pub(crate) stores: Arc<Stores>,
    /// Who listens.
    pub(crate) events: Arc<EventBus>,
}

/// Metrics can't be served.
#[derive(Debug, thiserror::Error)]
#[error("serve metrics on {at}")]
pub(crate) struct MetricsError {
    at: String,
    #[source]
    cause: io::Error,
}

/// Where scrapers come in.
#[derive(Debug)]
pub(crate) enum Door {
    /// By a file.
    Unix(UnixListener),
    /// By a port.
    Tcp(TcpListener),
}

/// Takes the address.
pub(crate) async fn bind(address: &MetricsAddress) -> Result<Door, MetricsError> {
    match address {
        MetricsAddress::Tcp(port) => {
            let bound = TcpListener::bind(port).await;
            bound.map(Door::Tcp).map_err(|cause| MetricsError { at: port.to_string(), cause })
        }
        MetricsAddress::Unix(at) => {
            let failed = |cause| MetricsError { at: at.display().to_string(), cause };
            // Ours of an earlier life: nobody else has a business in there.
            if std::fs::symlink_metadata(at).is_ok_and(|old| old.file_type().is_socket()) {
                std::fs::remove_file(at).map_err(failed)?;
            }
            UnixListener::bind(at).map(Door::Unix).map_err(failed)
        }
    }
}

/// Scrapers that are served at a time; more wait.
const AT_ONCE: usize = 4;

/// Serves until the process ends.
pub(crate) async fn serve(door: Door, sources: Sources) {
    let places = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    loop {
        // Nobody closes it.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let sources = sources.clone();
        let met = match &door {
            Door::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(async move {
                    answer(stream, &sources).await;
                    drop(place);
                })
            }),
            Door::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(async move {
                    answer(stream, &sources).await;
                    drop(place);
                })
            }),
        };
        if let Err(error) = met {
            tracing::warn!(%error, "scraper not accepted");
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    }
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, sources: &Sources) {
    let sources = sources.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let sources = sources.clone();
        async move { Ok::<_, Infallible>(respond(&request, sources).await) }
    });
    let mut server = http1::Builder::new();
    // Who connects and says nothing keeps nobody else out for long.
    server.timer(TokioTimer::new()).header_read_timeout(std::time::Duration::from_secs(5)).keep_alive(false);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "scraper left");
    }
}

async fn respond(request: &Request<Incoming>, sources: Sources) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics" | "/v1/metrics") => match tokio::task::spawn_blocking(move || page(&sources)).await {
            Ok(Ok(page)) => (StatusCode::OK, page),
            Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", chain(&error))),
            Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the request met a bug\n".into()),
        },
        (_, "/metrics" | "/v1/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "use GET\n".into()),
        _ => (StatusCode::NOT_FOUND, "metrics are at /metrics\n".into()),
    };
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Everything there is to say.
fn page(sources: &Sources) -> Result<String, StoreError> {
    let mut page = Page::default();
    let version = [("version", VERSION)];
    page.family("berth_build_info", Kind::Gauge, "This program.").sample("", &version, 1.0);
    METRICS.calls.write(&mut page);
    tasks(&mut page, &sources.tasks);
    transfers(&mut page);
    stores(&mut page, &sources.stores)?;
    let (subscribers, queued) = sources.events.backlog();
    page.one("berth_event_subscribers", Kind::Gauge, "Who listens to events.", subscribers as f64);
    page.one(
        "berth_event_queue_length",
        Kind::Gauge,
        "Events that the slowest of them has yet to read.",
        queued as f64,
    );
    let count = |counter: &super::AtomicU64| counter.load(Relaxed) as f64;
    page.one("berth_events_total", Kind::Counter, "Events published.", count(&METRICS.events));
    let help = "Subscribers that were too slow.";
    page.one("berth_event_subscribers_cut_off_total", Kind::Counter, help, count(&METRICS.cut_off));
    process(&mut page);
    Ok(page.end())
}

fn tasks(page: &mut Page, tasks: &Tasks) {
    let census = tasks.census();
    let mut family = page.family("berth_tasks", Kind::Gauge, "Tasks by namespace and state.");
    for ((namespace, state), count) in &census.states {
        family.sample("", &[("namespace", namespace), ("state", state)], *count as f64);
    }
    page.one("berth_shim_connections", Kind::Gauge, "Shims that we are connected to.", census.connections as f64);
}

fn transfers(page: &mut Page) {
    let count = |counter: &super::AtomicU64| counter.load(Relaxed) as f64;
    let mut by = |name, help, label, words: &[&str], counters: &[super::AtomicU64]| {
        let mut family = page.family(name, Kind::Counter, help);
        for (word, counter) in words.iter().zip(counters) {
            family.sample("", &[(label, *word)], count(counter));
        }
    };
    by("berth_pulls_total", "Pulls that ended.", "result", &["ok", "failed"], &METRICS.pulls);
    by("berth_gc_runs_total", "Garbage collections.", "result", &["ok", "failed"], &METRICS.collections);
    let kinds = ["blob", "snapshot", "lease"];
    by("berth_gc_removed_total", "What collections removed.", "kind", &kinds, &METRICS.collected);
    page.one("berth_gc_seconds_total", Kind::Counter, "Time in collections.", count(&METRICS.collecting) / 1e6);
    page.one("berth_fetched_bytes_total", Kind::Counter, "Bytes from registries.", count(&METRICS.fetched));
}

fn stores(page: &mut Page, stores: &Stores) -> Result<(), StoreError> {
    let content = stores.content.totals()?;
    let mut family = page.family("berth_content_blobs", Kind::Gauge, "Blobs by namespace; namespaces share files.");
    for (namespace, (count, _)) in &content {
        family.sample("", &[("namespace", namespace)], *count as f64);
    }
    let mut family = page.family("berth_content_bytes", Kind::Gauge, "Bytes of these blobs.");
    for (namespace, (_, bytes)) in &content {
        family.sample("", &[("namespace", namespace)], *bytes as f64);
    }
    let mut snapshots: BTreeMap<(String, String, String), (u64, u64)> = BTreeMap::new();
    for (namespace, key, record) in stores.db.read(|tx| crate::snapshots::SNAPSHOTS.list_all(tx))? {
        let driver = key.split('\0').next().unwrap_or_default().to_owned();
        let sum = snapshots.entry((namespace, driver, format!("{:?}", record.kind).to_lowercase())).or_default();
        *sum = (sum.0 + 1, sum.1 + record.usage.bytes);
    }
    let mut family = page.family("berth_snapshots", Kind::Gauge, "Snapshots by namespace, snapshotter and kind.");
    for ((namespace, driver, kind), (count, _)) in &snapshots {
        family.sample("", &[("namespace", namespace), ("snapshotter", driver), ("kind", kind)], *count as f64);
    }
    let mut family = page.family("berth_snapshot_bytes", Kind::Gauge, "Bytes in committed snapshots.");
    for ((namespace, driver, _), (_, bytes)) in snapshots.iter().filter(|((_, _, kind), _)| kind == "committed") {
        family.sample("", &[("namespace", namespace), ("snapshotter", driver)], *bytes as f64);
    }
    Ok(())
}

/// Our own process, in the words of Prometheus' client libraries (proc_pid_stat(5)).
fn process(page: &mut Page) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name, in parentheses, may hold anything: counted from behind it.
    let fields: Vec<&str> = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
    let number = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64;
    let page_size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as f64;
    let boot = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let boot = boot.lines().find_map(|line| line.strip_prefix("btime ")?.parse::<f64>().ok()).unwrap_or(0.0);
    // The one that reads the folder is no descriptor of ours.
    let fds = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1));
    let most = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    for (name, kind, help, value) in [
        ("process_cpu_seconds_total", Kind::Counter, "Time on processors.", (number(14) + number(15)) / ticks),
        ("process_resident_memory_bytes", Kind::Gauge, "Resident memory.", number(24) * page_size),
        ("process_virtual_memory_bytes", Kind::Gauge, "Address space.", number(23)),
        ("process_threads", Kind::Gauge, "Threads.", number(20)),
        ("process_open_fds", Kind::Gauge, "Open descriptors.", fds as f64),
        ("process_max_fds", Kind::Gauge, "Most descriptors that may be open.", most as f64),
        ("process_start_time_seconds", Kind::Gauge, "Start, in seconds since 1970.", boot + number(22) / ticks),
    ] {
        page.one(name, kind, help, value);
    }
}
