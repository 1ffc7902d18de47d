//! `HostConfig`: how a container is tied to this host: every field of Docker's API is typed. What else comes is kept
//! aside until the request is checked, and neither stored nor shown.

use super::serial::{OrNull, nullable};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Host side of a container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "the names are Docker's own, documented there")]
pub struct HostConfig {
    pub binds: Option<Vec<String>>,
    #[serde(rename = "ContainerIDFile", deserialize_with = "nullable")]
    pub container_id_file: String,
    #[serde(deserialize_with = "nullable")]
    pub log_config: LogConfig,
    #[serde(deserialize_with = "nullable")]
    pub network_mode: String,
    pub port_bindings: OrNull<BTreeMap<String, Option<Vec<PortBinding>>>>,
    #[serde(deserialize_with = "nullable")]
    pub restart_policy: RestartPolicy,
    #[serde(deserialize_with = "nullable")]
    pub auto_remove: bool,
    #[serde(deserialize_with = "nullable")]
    pub volume_driver: String,
    pub volumes_from: Option<Vec<String>>,
    #[serde(deserialize_with = "nullable")]
    pub console_size: [u32; 2],
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
    pub cap_add: Option<Vec<String>>,
    pub cap_drop: Option<Vec<String>>,
    #[serde(deserialize_with = "nullable")]
    pub cgroupns_mode: String,
    pub dns: OrNull<Vec<String>>,
    pub dns_options: OrNull<Vec<String>>,
    pub dns_search: OrNull<Vec<String>>,
    pub extra_hosts: Option<Vec<String>>,
    pub group_add: Option<Vec<String>>,
    #[serde(deserialize_with = "nullable")]
    pub ipc_mode: String,
    #[serde(deserialize_with = "nullable")]
    pub cgroup: String,
    pub links: Option<Vec<String>>,
    #[serde(deserialize_with = "nullable")]
    pub oom_score_adj: i32,
    #[serde(deserialize_with = "nullable")]
    pub pid_mode: String,
    #[serde(deserialize_with = "nullable")]
    pub privileged: bool,
    #[serde(deserialize_with = "nullable")]
    pub publish_all_ports: bool,
    #[serde(deserialize_with = "nullable")]
    pub readonly_rootfs: bool,
    pub security_opt: Option<Vec<String>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub storage_opt: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub tmpfs: BTreeMap<String, String>,
    #[serde(rename = "UTSMode", deserialize_with = "nullable")]
    pub uts_mode: String,
    #[serde(deserialize_with = "nullable")]
    pub userns_mode: String,
    #[serde(deserialize_with = "nullable")]
    pub shm_size: i64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub sysctls: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub runtime: String,
    #[serde(deserialize_with = "nullable")]
    pub isolation: String,
    #[serde(deserialize_with = "nullable")]
    pub cpu_shares: i64,
    #[serde(deserialize_with = "nullable")]
    pub memory: i64,
    #[serde(deserialize_with = "nullable")]
    pub nano_cpus: i64,
    #[serde(deserialize_with = "nullable")]
    pub cgroup_parent: String,
    #[serde(deserialize_with = "nullable")]
    pub blkio_weight: u16,
    pub blkio_weight_device: OrNull<Vec<WeightDevice>>,
    pub blkio_device_read_bps: OrNull<Vec<ThrottleDevice>>,
    pub blkio_device_write_bps: OrNull<Vec<ThrottleDevice>>,
    #[serde(rename = "BlkioDeviceReadIOps")]
    pub blkio_device_read_iops: OrNull<Vec<ThrottleDevice>>,
    #[serde(rename = "BlkioDeviceWriteIOps")]
    pub blkio_device_write_iops: OrNull<Vec<ThrottleDevice>>,
    #[serde(deserialize_with = "nullable")]
    pub cpu_period: i64,
    #[serde(deserialize_with = "nullable")]
    pub cpu_quota: i64,
    #[serde(deserialize_with = "nullable")]
    pub cpu_realtime_period: i64,
    #[serde(deserialize_with = "nullable")]
    pub cpu_realtime_runtime: i64,
    #[serde(deserialize_with = "nullable")]
    pub cpuset_cpus: String,
    #[serde(deserialize_with = "nullable")]
    pub cpuset_mems: String,
    pub devices: OrNull<Vec<Device>>,
    pub device_cgroup_rules: Option<Vec<String>>,
    pub device_requests: Option<Vec<DeviceRequest>>,
    /// Of clients before 1.42.
    #[serde(skip_serializing_if = "is_none_or_zero", deserialize_with = "nullable")]
    pub kernel_memory: i64,
    /// Of clients before 1.42.
    #[serde(rename = "KernelMemoryTCP", skip_serializing_if = "is_none_or_zero", deserialize_with = "nullable")]
    pub kernel_memory_tcp: i64,
    #[serde(deserialize_with = "nullable")]
    pub memory_reservation: i64,
    #[serde(deserialize_with = "nullable")]
    pub memory_swap: i64,
    pub memory_swappiness: Option<i64>,
    pub oom_kill_disable: Option<bool>,
    pub pids_limit: Option<i64>,
    pub ulimits: OrNull<Vec<Ulimit>>,
    /// Of Windows, as the three after it.
    #[serde(deserialize_with = "nullable")]
    pub cpu_count: i64,
    #[serde(deserialize_with = "nullable")]
    pub cpu_percent: i64,
    #[serde(rename = "IOMaximumIOps", deserialize_with = "nullable")]
    pub io_maximum_iops: u64,
    #[serde(rename = "IOMaximumBandwidth", deserialize_with = "nullable")]
    pub io_maximum_bandwidth: u64,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub mounts: Vec<Mount>,
    pub masked_paths: Option<Vec<String>>,
    pub readonly_paths: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<bool>,
    /// What Docker does not know either.
    #[serde(flatten, skip_serializing)]
    pub other: Map<String, Value>,
}

/// Weight of one block device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "the names are Docker's own, documented there")]
pub struct WeightDevice {
    #[serde(deserialize_with = "nullable")]
    pub path: String,
    #[serde(deserialize_with = "nullable")]
    pub weight: u16,
}

/// Limit of one block device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "the names are Docker's own, documented there")]
pub struct ThrottleDevice {
    #[serde(deserialize_with = "nullable")]
    pub path: String,
    #[serde(deserialize_with = "nullable")]
    pub rate: u64,
}

/// Devices that somebody else knows how to give: by CDI.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "the names are Docker's own, documented there")]
pub struct DeviceRequest {
    #[serde(deserialize_with = "nullable")]
    pub driver: String,
    #[serde(deserialize_with = "nullable")]
    pub count: i64,
    #[serde(rename = "DeviceIDs")]
    pub device_ids: OrNull<Vec<String>>,
    pub capabilities: OrNull<Vec<Vec<String>>>,
    pub options: OrNull<BTreeMap<String, String>>,
}

/// Driver of the log and its options.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "the names are Docker's own, documented there")]
pub struct LogConfig {
    #[serde(rename = "Type", deserialize_with = "nullable")]
    pub kind: String,
    #[serde(deserialize_with = "nullable")]
    pub config: BTreeMap<String, String>,
}

/// Where a port is published.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "the names are Docker's own, documented there")]
pub struct PortBinding {
    #[serde(deserialize_with = "nullable")]
    pub host_ip: String,
    #[serde(deserialize_with = "nullable")]
    pub host_port: String,
}

/// When to start again by itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "the names are Docker's own, documented there")]
pub struct RestartPolicy {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable")]
    pub maximum_retry_count: i64,
}

/// A device of the host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "the names are Docker's own, documented there")]
pub struct Device {
    #[serde(deserialize_with = "nullable")]
    pub path_on_host: String,
    #[serde(deserialize_with = "nullable")]
    pub path_in_container: String,
    #[serde(deserialize_with = "nullable")]
    pub cgroup_permissions: String,
}

/// A resource limit of processes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "the names are Docker's own, documented there")]
pub struct Ulimit {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable")]
    pub hard: i64,
    #[serde(deserialize_with = "nullable")]
    pub soft: i64,
}

/// One entry of `Mounts`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "the names are Docker's own, documented there")]
pub struct Mount {
    #[serde(rename = "Type", deserialize_with = "nullable")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub source: String,
    #[serde(deserialize_with = "nullable")]
    pub target: String,
    #[serde(skip_serializing_if = "std::ops::Not::not", deserialize_with = "nullable")]
    pub read_only: bool,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub consistency: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_options: Option<BindOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_options: Option<VolumeOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs_options: Option<TmpfsOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_options: Option<ImageOptions>,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Options of a bind mount.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "the names are Docker's own, documented there")]
pub struct BindOptions {
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub propagation: String,
    #[serde(skip_serializing_if = "std::ops::Not::not", deserialize_with = "nullable")]
    pub non_recursive: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not", deserialize_with = "nullable")]
    pub create_mountpoint: bool,
    /// Read-only, but not what is mounted below.
    #[serde(skip_serializing_if = "std::ops::Not::not", deserialize_with = "nullable")]
    pub read_only_non_recursive: bool,
    /// An error where what is mounted below cannot be made read-only too.
    #[serde(skip_serializing_if = "std::ops::Not::not", deserialize_with = "nullable")]
    pub read_only_force_recursive: bool,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Options of a volume mount.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "the names are Docker's own, documented there")]
pub struct VolumeOptions {
    #[serde(skip_serializing_if = "std::ops::Not::not", deserialize_with = "nullable")]
    pub no_copy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub subpath: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_config: Option<DriverConfig>,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Who makes a volume, and how.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "the names are Docker's own, documented there")]
pub struct DriverConfig {
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub name: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub options: BTreeMap<String, String>,
}

/// Options of an image mount.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "the names are Docker's own, documented there")]
pub struct ImageOptions {
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub subpath: String,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Options of a tmpfs mount.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "the names are Docker's own, documented there")]
pub struct TmpfsOptions {
    #[serde(skip_serializing_if = "is_none_or_zero", deserialize_with = "nullable")]
    pub size_bytes: i64,
    #[serde(skip_serializing_if = "is_no_mode", deserialize_with = "nullable")]
    pub mode: u32,
    /// Words of mount(8), each alone or with a value.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub options: Vec<Vec<String>>,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

fn is_none_or_zero(value: &i64) -> bool {
    *value == 0
}

fn is_no_mode(value: &u32) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_what_the_docker_client_sends_and_shows_null_as_null() {
        let text = r#"{"Binds":null,"ContainerIDFile":"","LogConfig":{"Type":"","Config":{}},"NetworkMode":"default",
            "PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"8080"}]},"RestartPolicy":{"Name":"no","MaximumRetryCount":0},
            "AutoRemove":true,"VolumesFrom":null,"ConsoleSize":[0,0],"CapAdd":null,"Dns":[],"DnsSearch":null,"Privileged":false,
            "BlkioWeight":0,"BlkioDeviceReadBps":[],"MemorySwappiness":-1,"OomKillDisable":false,"PidsLimit":0,"Ulimits":[],
            "NoSuchField":1}"#;
        let config: HostConfig = serde_json::from_str(text).unwrap();
        assert!(config.auto_remove);
        assert_eq!(config.memory_swappiness, Some(-1));
        assert!(config.other.keys().eq(["NoSuchField"]));
        let shown = serde_json::to_value(&config).unwrap();
        for (key, value) in [
            ("Dns", json!([])),
            ("DnsSearch", json!(null)),
            ("Devices", json!(null)),
            ("BlkioDeviceReadBps", json!([])),
            ("BlkioDeviceWriteIOps", json!(null)),
            ("BlkioWeight", json!(0)),
            ("VolumesFrom", json!(null)),
            ("DeviceRequests", json!(null)),
            ("Isolation", json!("")),
        ] {
            assert_eq!(shown[key], value, "{key}");
        }
        for absent in ["NoSuchField", "KernelMemory", "StorageOpt", "Tmpfs", "Mounts", "Init", "Sysctls"] {
            assert!(shown.get(absent).is_none(), "{absent}");
        }
        let back: HostConfig = serde_json::from_value(shown).unwrap();
        assert_eq!(back, HostConfig { other: Map::new(), ..config });
    }
}
