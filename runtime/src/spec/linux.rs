//! The `linux` part of config.json.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::nullable;
use crate::confine::seccomp::SyscallNames;

/// `linux`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Linux {
    #[serde(deserialize_with = "nullable")]
    pub(crate) uid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) gid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) sysctl: BTreeMap<String, String>,
    pub(crate) resources: Option<Resources>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) cgroups_path: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) namespaces: Vec<Namespace>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) devices: Vec<Device>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) time_offsets: BTreeMap<String, TimeOffset>,
    pub(crate) seccomp: Option<Seccomp>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) rootfs_propagation: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) masked_paths: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) readonly_paths: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) mount_label: String,
    pub(crate) personality: Option<Personality>,
    pub(crate) memory_policy: Option<MemoryPolicy>,
    pub(crate) intel_rdt: Option<IntelRdt>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) net_devices: BTreeMap<String, NetDevice>,
}

/// One of `uidMappings`, `gidMappings`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct IdMapping {
    #[serde(rename = "containerID")]
    pub(crate) container_id: u32,
    #[serde(rename = "hostID")]
    pub(crate) host_id: u32,
    pub(crate) size: u32,
}

/// One of `namespaces`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Namespace {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) path: PathBuf,
}

/// One of `timeOffsets`
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TimeOffset {
    #[serde(deserialize_with = "nullable")]
    pub(crate) secs: i64,
    #[serde(deserialize_with = "nullable")]
    pub(crate) nanosecs: u32,
}

/// One of `netDevices`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NetDevice {
    #[serde(deserialize_with = "nullable")]
    pub(crate) name: String,
}

/// One of `devices`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Device {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) path: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) major: i64,
    #[serde(deserialize_with = "nullable")]
    pub(crate) minor: i64,
    pub(crate) file_mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

/// `personality`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Personality {
    pub(crate) domain: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) flags: Vec<String>,
}

/// `memoryPolicy`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct MemoryPolicy {
    pub(crate) mode: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) nodes: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) flags: Vec<String>,
}

/// `intelRdt`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct IntelRdt {
    #[serde(rename = "closID", deserialize_with = "nullable")]
    pub(crate) clos_id: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) schemata: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) l3_cache_schema: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) mem_bw_schema: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) enable_monitoring: bool,
    #[serde(rename = "enableCMT", deserialize_with = "nullable")]
    pub(crate) enable_cmt: bool,
    #[serde(rename = "enableMBM", deserialize_with = "nullable")]
    pub(crate) enable_mbm: bool,
}

/// `resources`, and what `update --resources` reads
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Resources {
    #[serde(deserialize_with = "nullable")]
    pub(crate) devices: Vec<DeviceRule>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) memory: Memory,
    #[serde(deserialize_with = "nullable")]
    pub(crate) cpu: Cpu,
    #[serde(deserialize_with = "nullable")]
    pub(crate) pids: Pids,
    #[serde(rename = "blockIO", deserialize_with = "nullable")]
    pub(crate) block_io: BlockIo,
    #[serde(deserialize_with = "nullable")]
    pub(crate) hugepage_limits: Vec<HugepageLimit>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) network: Network,
    #[serde(deserialize_with = "nullable")]
    pub(crate) rdma: BTreeMap<String, Rdma>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) unified: BTreeMap<String, String>,
}

/// One of `resources.devices`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct DeviceRule {
    pub(crate) allow: bool,
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub(crate) kind: String,
    pub(crate) major: Option<i64>,
    pub(crate) minor: Option<i64>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) access: String,
}

/// `resources.memory`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Memory {
    pub(crate) limit: Option<i64>,
    pub(crate) reservation: Option<i64>,
    pub(crate) swap: Option<i64>,
    pub(crate) swappiness: Option<u64>,
    #[serde(rename = "disableOOMKiller")]
    pub(crate) disable_oom_killer: Option<bool>,
    pub(crate) check_before_update: Option<bool>,
    pub(crate) kernel: Option<i64>,
    #[serde(rename = "kernelTCP")]
    pub(crate) kernel_tcp: Option<i64>,
}

/// `resources.cpu`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Cpu {
    pub(crate) shares: Option<u64>,
    pub(crate) quota: Option<i64>,
    pub(crate) burst: Option<u64>,
    pub(crate) period: Option<u64>,
    pub(crate) realtime_runtime: Option<i64>,
    pub(crate) realtime_period: Option<u64>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) cpus: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) mems: String,
    pub(crate) idle: Option<i64>,
}

/// `resources.pids`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Pids {
    pub(crate) limit: Option<i64>,
}

/// `resources.blockIO`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct BlockIo {
    pub(crate) weight: Option<u16>,
    pub(crate) leaf_weight: Option<u16>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) weight_device: Vec<WeightDevice>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) throttle_read_bps_device: Vec<ThrottleDevice>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) throttle_write_bps_device: Vec<ThrottleDevice>,
    #[serde(rename = "throttleReadIOPSDevice", deserialize_with = "nullable")]
    pub(crate) throttle_read_iops_device: Vec<ThrottleDevice>,
    #[serde(rename = "throttleWriteIOPSDevice", deserialize_with = "nullable")]
    pub(crate) throttle_write_iops_device: Vec<ThrottleDevice>,
}

/// One of `resources.blockIO.weightDevice`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct WeightDevice {
    pub(crate) major: u64,
    pub(crate) minor: u64,
    pub(crate) weight: Option<u16>,
    pub(crate) leaf_weight: Option<u16>,
}

/// One of `resources.blockIO.throttle*`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ThrottleDevice {
    pub(crate) major: u64,
    pub(crate) minor: u64,
    pub(crate) rate: u64,
}

/// One of `resources.hugepageLimits`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct HugepageLimit {
    pub(crate) page_size: String,
    pub(crate) limit: u64,
}

/// `resources.network`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Network {
    #[serde(rename = "classID")]
    pub(crate) class_id: Option<u32>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) priorities: Vec<NetworkPriority>,
}

/// One of `resources.network.priorities`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NetworkPriority {
    pub(crate) name: String,
    pub(crate) priority: u32,
}

/// One of `resources.rdma`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Rdma {
    pub(crate) hca_handles: Option<u32>,
    pub(crate) hca_objects: Option<u32>,
}

/// `seccomp`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Seccomp {
    #[serde(deserialize_with = "nullable")]
    pub(crate) default_action: String,
    pub(crate) default_errno_ret: Option<u32>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) architectures: Vec<String>,
    /// None at all is not the same as an empty list.
    pub(crate) flags: Option<Vec<String>>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) listener_path: PathBuf,
    #[serde(deserialize_with = "nullable")]
    pub(crate) listener_metadata: String,
    #[serde(deserialize_with = "nullable")]
    pub(crate) syscalls: Vec<SyscallRule>,
}

/// One of `seccomp.syscalls`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SyscallRule {
    #[serde(deserialize_with = "nullable")]
    pub(crate) names: SyscallNames,
    #[serde(deserialize_with = "nullable")]
    pub(crate) action: String,
    pub(crate) errno_ret: Option<u32>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) args: Vec<ArgumentTest>,
}

/// One of `seccomp.syscalls[].args`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ArgumentTest {
    pub(crate) index: u32,
    pub(crate) value: u64,
    #[serde(deserialize_with = "nullable")]
    pub(crate) value_two: u64,
    #[serde(deserialize_with = "nullable")]
    pub(crate) op: String,
}
