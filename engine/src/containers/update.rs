//! `POST /containers/{id}/update`: limits, restart policy and published ports of a container that exists. What is zero stays as it is. A
//! container that runs is told at once; the record is on disk before, so that an engine that dies in between goes on.

use super::{
    Container, networking,
    record::{Phase, Record},
    resources, restart, spec,
};
use crate::{
    api::{HostConfig, serial::is_zero},
    app::App,
    http::{ApiError, ApiResult},
    ids,
    supervisor::SupervisorError,
};
use proto::{
    containerd::services::tasks::v1::UpdateTaskRequest,
    kind::{ErrorKind, chain},
    typeurl,
};
use serde_json::{Map, Value};
use std::sync::Arc;
use tracing::warn;

/// What can be changed, as the fields of `HostConfig` are named.
const FIELDS: [&str; 18] = [
    "BlkioDeviceReadBps",
    "BlkioDeviceReadIOps",
    "BlkioDeviceWriteBps",
    "BlkioDeviceWriteIOps",
    "BlkioWeight",
    "BlkioWeightDevice",
    "CpuPeriod",
    "CpuQuota",
    "CpuRealtimePeriod",
    "CpuRealtimeRuntime",
    "CpuShares",
    "CpusetCpus",
    "CpusetMems",
    "Memory",
    "MemoryReservation",
    "MemorySwap",
    "NanoCpus",
    "PidsLimit",
];
/// Sent by clients, without a meaning for years.
const IGNORED: [&str; 2] = ["KernelMemory", "KernelMemoryTCP"];

/// The configuration after an update.
fn changed(record: &Record, request: &Map<String, Value>) -> ApiResult<HostConfig> {
    let old = &record.host;
    let mut value = serde_json::to_value(old).map_err(|e| ApiError::unexpected(&e))?;
    for (key, wanted) in request {
        match key.as_str() {
            // A limit of 0 means none, for Docker's client sends null where nobody said anything.
            "PidsLimit" if !wanted.is_null() => value[key] = wanted.clone(),
            // Not docker's: all ports that are to be published from now on.
            "PortBindings" if !wanted.is_null() => value[key] = wanted.clone(),
            key if FIELDS.contains(&key) => {
                if !is_zero(wanted) {
                    value[key] = wanted.clone();
                }
            }
            "RestartPolicy" => {
                if wanted["Name"].as_str().is_some_and(|name| !name.is_empty()) {
                    value[key] = wanted.clone();
                }
            }
            key if IGNORED.contains(&key) || is_zero(wanted) => {}
            "MemorySwappiness" if wanted.as_i64() == Some(-1) => {}
            key => return Err(ApiError::invalid(format!("{key} can't be changed by an update; make a new container"))),
        }
    }
    let new: HostConfig = serde_json::from_value(value).map_err(|e| ApiError::invalid(format!("invalid JSON: {e}")))?;
    conflicts(old, request)?;
    resources::check(&new)?;
    if new.port_bindings != old.port_bindings {
        networking::check_ports(&new, &record.config.exposed_ports)?;
    }
    restart::check(&new.restart_policy, false)?;
    if old.auto_remove && !matches!(new.restart_policy.name.as_str(), "" | "no") {
        return Err(ApiError::conflict(
            "Restart policy cannot be updated because AutoRemove is enabled for the container",
        ));
    }
    Ok(new)
}

/// What contradicts that which is set already.
fn conflicts(old: &HostConfig, request: &Map<String, Value>) -> ApiResult<()> {
    let wants = |key: &str| request.get(key).and_then(Value::as_i64).unwrap_or(0);
    let refuse = |text: &str| Err(ApiError::conflict(text));
    if wants("NanoCpus") > 0 && old.cpu_period > 0 {
        return refuse("Conflicting options: Nano CPUs cannot be updated as CPU Period has already been set");
    }
    if wants("NanoCpus") > 0 && old.cpu_quota > 0 {
        return refuse("Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set");
    }
    if wants("CpuPeriod") > 0 && old.nano_cpus > 0 {
        return refuse("Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set");
    }
    if wants("CpuQuota") > 0 && old.nano_cpus > 0 {
        return refuse("Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set");
    }
    if old.memory_swap > 0 && wants("Memory") > old.memory_swap && wants("MemorySwap") == 0 {
        return refuse(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time",
        );
    }
    Ok(())
}

/// `linux.resources` of an update: all limits, so that it can be said again.
fn resources(host: &HostConfig) -> Map<String, Value> {
    let mut limits = spec::limits(host);
    if host.pids_limit.is_some_and(|limit| limit <= 0) {
        limits.insert("pids".into(), serde_json::json!({"limit": -1}));
    }
    limits
}

/// Changes a container.
pub async fn update(
    app: &Arc<App>,
    container: &Arc<Container>,
    request: &Map<String, Value>,
) -> ApiResult<Vec<String>> {
    let _turn = container.turn.lock().await;
    let cannot = |error: ApiError| {
        ApiError::new(error.status, format!("Cannot update container {}: {}", container.id, error.message))
    };
    let old = container.record();
    if old.state.phase == Phase::Removing {
        return Err(cannot(ApiError::conflict("container is marked for removal and cannot be \"update\"")));
    }
    let new = changed(&old, request).map_err(cannot)?;
    let limits = resources(&new);
    let republish = new.port_bindings != old.host.port_bindings;
    let restarts = new.restart_policy != old.host.restart_policy;
    let tell = limits != resources(&old.host) && old.state.phase.is_live();
    let told = {
        let mut live = container.live();
        live.record.host = new;
        live.record.update_pending = tell;
        live.record.clone()
    };
    if let Err(error) = app.containers.store.put(&told).await {
        give_back(container, &old);
        return Err(cannot(ApiError::unexpected(&error)));
    }
    proto::fault!("engine.update.recorded");
    if tell {
        if let Err(error) = apply(app, container, limits).await {
            give_back(container, &old);
            let record = container.record();
            if let Err(error) = app.containers.store.put(&record).await {
                warn!(id = ids::short(&container.id), error = %chain(&error), "an update that failed is still on record");
            }
            return Err(cannot(error));
        }
        settled(app, container);
    }
    if republish && let Err(error) = networking::live::publish(app, container).await {
        give_back(container, &old);
        let record = container.record();
        if let Err(error) = app.containers.store.put(&record).await {
            warn!(id = ids::short(&container.id), error = %chain(&error), "ports that can't be published are still on record");
        }
        return Err(cannot(error));
    }
    if restarts {
        // The back-off belongs to the policy that was.
        container.live().restart_delay = None;
    }
    app.events.publish("container", "update", &container.id, container.attributes());
    Ok(Vec::new())
}

fn give_back(container: &Container, old: &Record) {
    let mut live = container.live();
    live.record.host = old.host.clone();
    live.record.update_pending = false;
}

fn settled(app: &App, container: &Container) {
    let mut live = container.live();
    live.record.update_pending = false;
    // "Unlimited" has been said; from now on it is nothing to be said.
    if live.record.host.pids_limit.is_some_and(|limit| limit <= 0) {
        live.record.host.pids_limit = None;
    }
    app.containers.store.put_soon(&live.record);
}

/// Tells the task, which may end at any time: then its next start knows.
async fn apply(app: &Arc<App>, container: &Container, limits: Map<String, Value>) -> ApiResult<()> {
    let limits = serde_json::to_vec(&limits).map_err(|e| ApiError::unexpected(&e))?;
    let request = UpdateTaskRequest {
        container_id: container.id.clone(),
        resources: Some(typeurl::pack_json(typeurl::RESOURCES, limits)),
        ..UpdateTaskRequest::default()
    };
    let told = app.supervisor.tasks().update(request).await.map_err(SupervisorError::from);
    match told {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(_) if !container.live().record.state.phase.is_live() => Ok(()),
        Err(error) => Err(ApiError::of(error.kind(), &error)),
        Ok(_) => Ok(()),
    }
}

/// Finishes what an engine before us has begun.
pub async fn resume(app: &Arc<App>, container: &Arc<Container>) {
    let record = container.record();
    if record.state.phase.is_live()
        && let Err(error) = apply(app, container, resources(&record.host)).await
    {
        warn!(id = ids::short(&container.id), %error, "an interrupted update is not finished: it holds from the next start");
    }
    settled(app, container);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(host: Value) -> Record {
        serde_json::from_value(json!({
            "id": "i", "name": "n", "created": "0001-01-01T00:00:00Z", "image_id": "", "image_digest": "", "config": {},
            "host": host, "path": "", "args": [], "mounts": [], "state": crate::containers::record::State::created(),
        }))
        .unwrap()
    }

    fn apply_to(host: Value, request: Value) -> ApiResult<HostConfig> {
        changed(&record(host), request.as_object().unwrap())
    }

    #[test]
    fn zero_is_unchanged() {
        let host =
            json!({"Memory": 64 << 20, "MemorySwap": 128 << 20, "CpuShares": 5, "RestartPolicy": {"Name": "always"}});
        let request = json!({"Memory": 0, "CpuShares": 9, "CpusetCpus": "", "PidsLimit": null, "Devices": null, "Ulimits": [],
            "RestartPolicy": {"Name": "", "MaximumRetryCount": 0}, "KernelMemory": 5});
        let new = apply_to(host, request).unwrap();
        assert_eq!((new.memory, new.cpu_shares, new.restart_policy.name.as_str()), (64 << 20, 9, "always"));
        let unlimited = apply_to(json!({"PidsLimit": 5}), json!({"PidsLimit": -1})).unwrap();
        assert_eq!(resources(&unlimited)["pids"]["limit"], -1);
    }

    #[test]
    fn refusals_of_docker() {
        for (host, request, status, text) in [
            (
                json!({"MemorySwap": 128 << 20, "Memory": 64 << 20}),
                json!({"Memory": 256 << 20}),
                409,
                "memoryswap at the same time",
            ),
            (json!({"CpuPeriod": 5000}), json!({"NanoCpus": 10_000_000}), 409, "as CPU Period has"),
            (json!({"NanoCpus": 10_000_000}), json!({"CpuQuota": 5000}), 409, "as NanoCPUs has"),
            (json!({"AutoRemove": true}), json!({"RestartPolicy": {"Name": "always"}}), 409, "AutoRemove is enabled"),
            (json!({}), json!({"Memory": 5}), 400, "6MB"),
            (json!({}), json!({"Ulimits": [{"Name": "nofile"}]}), 400, "Ulimits can't be changed"),
            (json!({}), json!({"RestartPolicy": {"Name": "sometimes"}}), 400, "sometimes"),
            (json!({}), json!({"CpuShares": "many"}), 400, "invalid JSON"),
        ] {
            let error = apply_to(host, request.clone()).unwrap_err();
            assert_eq!(error.status.as_u16(), status, "{request}: {error}");
            assert!(error.message.contains(text), "{request}: {error}");
        }
    }
}
