//! Resource use, in Docker's words, from the metrics that shims give in containerd's.

use super::{Container, record::Phase};
use crate::{app::App, ids, supervisor::SupervisorError, time::Timestamp};
use bytes::Bytes;
use proto::{
    containerd::services::tasks::v1::MetricsRequest,
    io::containerd::cgroups::{v1, v2},
    kind::chain,
    typeurl,
};
use serde_json::{Map, Value, json};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tracing::debug;

/// Sends samples, one each second, or one alone.
pub async fn send(
    app: Arc<App>,
    container: Arc<Container>,
    streaming: bool,
    one_shot: bool,
    sender: mpsc::Sender<Result<Bytes, Infallible>>,
) {
    let mut before: Option<Value> = None;
    // A single sample needs one before it, to have a difference to show.
    let mut left = if streaming { usize::MAX } else { 2 - usize::from(one_shot) };
    let mut clock = tokio::time::interval(Duration::from_secs(1));
    while left > 0 {
        clock.tick().await;
        left -= 1;
        let sample = sample(&app, &container).await;
        let told = streaming || left == 0;
        if told {
            let text = format!("{}\n", combine(&container, &sample, before.as_ref()));
            if sender.send(Ok(text.into())).await.is_err() {
                return;
            }
        }
        before = Some(sample);
        if container.ends.borrow().removed {
            return;
        }
    }
}

fn combine(container: &Container, sample: &Value, before: Option<&Value>) -> Value {
    let mut value = sample.clone();
    let empty = json!({"cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
                       "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0}});
    value["precpu_stats"] = before.map_or(empty, |before| before["cpu_stats"].clone());
    value["preread"] = before.map_or_else(|| json!(Timestamp::NEVER), |before| before["read"].clone());
    value["id"] = container.id.clone().into();
    value["name"] = format!("/{}", container.live().record.name).into();
    value
}

async fn sample(app: &App, container: &Container) -> Value {
    let (phase, pid) = {
        let live = container.live();
        (live.record.state.phase, live.record.state.pid)
    };
    let mut value = json!({
        "read": if phase.is_live() { Timestamp::now() } else { Timestamp::NEVER },
        "num_procs": 0, "storage_stats": {}, "pids_stats": {}, "memory_stats": {}, "blkio_stats": blkio(None),
        "cpu_stats": {"cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
                      "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0}},
    });
    if !matches!(phase, Phase::Running | Phase::Paused) {
        return value;
    }
    let request = MetricsRequest { filters: vec![format!("id=={}", container.id)] };
    let answer = app.supervisor.tasks().metrics(request).await.map_err(SupervisorError::from);
    let metrics = match answer {
        Ok(answer) => answer.into_inner().metrics,
        Err(error) => {
            debug!(id = ids::short(&container.id), error = %chain(&error), "metrics");
            return value;
        }
    };
    let Some(data) = metrics.into_iter().find(|m| m.id == container.id).and_then(|m| m.data) else { return value };
    if let Some(Ok(metrics)) = typeurl::unpack::<v1::Metrics>(&data) {
        fill_v1(&mut value, &metrics);
    } else if let Some(Ok(metrics)) = typeurl::unpack::<v2::Metrics>(&data) {
        fill_v2(&mut value, &metrics);
    }
    value["cpu_stats"]["system_cpu_usage"] = system_cpu().into();
    value["cpu_stats"]["online_cpus"] = std::thread::available_parallelism().map_or(1, |n| n.get()).into();
    let networks = interfaces(pid);
    if !networks.is_empty() {
        value["networks"] = networks.into();
    }
    value
}

fn fill_v1(value: &mut Value, metrics: &v1::Metrics) {
    if let Some(pids) = &metrics.pids {
        value["pids_stats"] = self::pids(pids.current, pids.limit);
    }
    if let Some(cpu) = &metrics.cpu {
        if let Some(usage) = &cpu.usage {
            value["cpu_stats"]["cpu_usage"] = json!({"total_usage": usage.total, "usage_in_kernelmode": usage.kernel,
                "usage_in_usermode": usage.user, "percpu_usage": usage.per_cpu});
        }
        if let Some(throttle) = &cpu.throttling {
            value["cpu_stats"]["throttling_data"] = json!({"periods": throttle.periods,
                "throttled_periods": throttle.throttled_periods, "throttled_time": throttle.throttled_time});
        }
    }
    if let Some(memory) = &metrics.memory {
        let usage = memory.usage.unwrap_or_default();
        let mut stats = Map::new();
        for (name, own, total) in [
            ("active_anon", memory.active_anon, memory.total_active_anon),
            ("active_file", memory.active_file, memory.total_active_file),
            ("cache", memory.cache, memory.total_cache),
            ("dirty", memory.dirty, memory.total_dirty),
            ("inactive_anon", memory.inactive_anon, memory.total_inactive_anon),
            ("inactive_file", memory.inactive_file, memory.total_inactive_file),
            ("mapped_file", memory.mapped_file, memory.total_mapped_file),
            ("pgfault", memory.pg_fault, memory.total_pg_fault),
            ("pgmajfault", memory.pg_maj_fault, memory.total_pg_maj_fault),
            ("pgpgin", memory.pg_pg_in, memory.total_pg_pg_in),
            ("pgpgout", memory.pg_pg_out, memory.total_pg_pg_out),
            ("rss", memory.rss, memory.total_rss),
            ("rss_huge", memory.rss_huge, memory.total_rss_huge),
            ("unevictable", memory.unevictable, memory.total_unevictable),
            ("writeback", memory.writeback, memory.total_writeback),
        ] {
            stats.insert(name.into(), own.into());
            stats.insert(format!("total_{name}"), total.into());
        }
        stats.insert("hierarchical_memory_limit".into(), memory.hierarchical_memory_limit.into());
        stats.insert("hierarchical_memsw_limit".into(), memory.hierarchical_swap_limit.into());
        value["memory_stats"] = json!({"usage": usage.usage, "max_usage": usage.max, "limit": memory_limit(usage.limit),
            "stats": stats});
        if usage.failcnt > 0 {
            value["memory_stats"]["failcnt"] = usage.failcnt.into();
        }
    }
    if let Some(io) = &metrics.blkio {
        let list = |entries: &[v1::BlkIoEntry]| -> Value {
            let one = |e: &v1::BlkIoEntry| json!({"major": e.major, "minor": e.minor, "op": e.op, "value": e.value});
            entries.iter().map(one).collect()
        };
        value["blkio_stats"] = json!({
            "io_service_bytes_recursive": list(&io.io_service_bytes_recursive),
            "io_serviced_recursive": list(&io.io_serviced_recursive),
            "io_queue_recursive": list(&io.io_queued_recursive),
            "io_service_time_recursive": list(&io.io_service_time_recursive),
            "io_wait_time_recursive": list(&io.io_wait_time_recursive),
            "io_merged_recursive": list(&io.io_merged_recursive),
            "io_time_recursive": list(&io.io_time_recursive),
            "sectors_recursive": list(&io.sectors_recursive),
        });
    }
}

/// Without a limit, as where the kernel says "max", Docker says nothing.
fn pids(current: u64, limit: u64) -> Value {
    match limit {
        0 | u64::MAX => json!({ "current": current }),
        limit => json!({"current": current, "limit": limit}),
    }
}

fn fill_v2(value: &mut Value, metrics: &v2::Metrics) {
    if let Some(pids) = &metrics.pids {
        value["pids_stats"] = self::pids(pids.current, pids.limit);
    }
    if let Some(cpu) = &metrics.cpu {
        value["cpu_stats"]["cpu_usage"] = json!({"total_usage": cpu.usage_usec * 1000,
            "usage_in_kernelmode": cpu.system_usec * 1000, "usage_in_usermode": cpu.user_usec * 1000});
        value["cpu_stats"]["throttling_data"] = json!({"periods": cpu.nr_periods, "throttled_periods": cpu.nr_throttled,
            "throttled_time": cpu.throttled_usec * 1000});
    }
    if let Some(memory) = &metrics.memory {
        let stats = json!({"anon": memory.anon, "file": memory.file, "kernel_stack": memory.kernel_stack, "slab": memory.slab, "sock": memory.sock, "shmem": memory.shmem, "file_mapped": memory.file_mapped, "file_dirty": memory.file_dirty, "file_writeback": memory.file_writeback, "anon_thp": memory.anon_thp, "inactive_anon": memory.inactive_anon, "active_anon": memory.active_anon, "inactive_file": memory.inactive_file, "active_file": memory.active_file, "unevictable": memory.unevictable, "slab_reclaimable": memory.slab_reclaimable, "slab_unreclaimable": memory.slab_unreclaimable, "pgfault": memory.pgfault, "pgmajfault": memory.pgmajfault, "workingset_refault": memory.workingset_refault, "workingset_activate": memory.workingset_activate, "workingset_nodereclaim": memory.workingset_nodereclaim, "pgrefill": memory.pgrefill, "pgscan": memory.pgscan, "pgsteal": memory.pgsteal, "pgactivate": memory.pgactivate, "pgdeactivate": memory.pgdeactivate, "pglazyfree": memory.pglazyfree, "pglazyfreed": memory.pglazyfreed, "thp_fault_alloc": memory.thp_fault_alloc, "thp_collapse_alloc": memory.thp_collapse_alloc});
        value["memory_stats"] =
            json!({"usage": memory.usage, "limit": memory_limit(memory.usage_limit), "stats": stats});
    }
    if let Some(io) = &metrics.io {
        let entries: Vec<_> = io
            .usage
            .iter()
            .flat_map(|e| {
                [("read", e.rbytes), ("write", e.wbytes)]
                    .map(|(op, bytes)| json!({"major": e.major, "minor": e.minor, "op": op, "value": bytes}))
            })
            .collect();
        value["blkio_stats"] = blkio(Some(&entries));
    }
}

/// Without a process Docker has null everywhere.
fn blkio(entries: Option<&[Value]>) -> Value {
    json!({"io_service_bytes_recursive": entries, "io_serviced_recursive": null, "io_queue_recursive": null,
           "io_service_time_recursive": null, "io_wait_time_recursive": null, "io_merged_recursive": null,
           "io_time_recursive": null, "sectors_recursive": null})
}

/// A container without a limit can use what the machine has.
fn memory_limit(limit: u64) -> u64 {
    match crate::http::system::total_memory() {
        0 => limit,
        total if limit == 0 => total,
        total => limit.min(total),
    }
}

/// Time of all processors together, in nanoseconds.
fn system_cpu() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: u64 = text
        .lines()
        .next()
        .unwrap_or("")
        .split_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|word| word.parse::<u64>().ok())
        .sum();
    // USER_HZ is 100 on every architecture that Linux runs containers on.
    ticks * 10_000_000
}

/// Counters of the container's own network interfaces.
fn interfaces(pid: u32) -> Map<String, Value> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    let mut map = Map::new();
    for line in text.lines().skip(2) {
        let Some((name, counters)) = line.split_once(':') else { continue };
        let counters: Vec<u64> = counters.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        if name.trim() == "lo" || counters.len() < 12 {
            continue;
        }
        map.insert(
            name.trim().to_owned(),
            json!({"rx_bytes": counters[0], "rx_packets": counters[1], "rx_errors": counters[2], "rx_dropped": counters[3],
                   "tx_bytes": counters[8], "tx_packets": counters[9], "tx_errors": counters[10], "tx_dropped": counters[11]}),
        );
    }
    map
}
