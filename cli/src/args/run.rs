//! Flags of `run` and `create`. What they mean to the engine is worked out in `crate::options`.

use super::values::{self, ByteSize, Nanos};
use clap::Args;

/// `run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Leave the container in the background and print its id
    #[arg(short, long)]
    pub detach: bool,
    /// Other keys for leaving the container
    #[arg(long, value_name = "string")]
    pub detach_keys: Option<String>,
    /// Pass signals on to the process
    #[arg(long, default_value = "true", action = clap::ArgAction::Set)]
    pub sig_proxy: bool,
    /// What both commands have.
    #[command(flatten)]
    pub container: CreateArgs,
}

/// `create`
#[derive(Debug, Default, Args)]
pub struct CreateArgs {
    /// Name of the container
    #[arg(long, value_name = "string")]
    pub name: Option<String>,
    /// Platform of the image: os/arch[/variant]
    #[arg(long, value_name = "string")]
    pub platform: Option<String>,
    /// When to pull the image: "always", "missing" or "never"
    #[arg(long, value_name = "string", default_value = "missing")]
    pub pull: String,
    /// No output while pulling
    #[arg(short, long)]
    pub quiet: bool,
    /// Accepted for docker's sake, changes nothing
    #[arg(long, hide = true)]
    pub disable_content_trust: bool,
    /// Give the container the engine's socket, and the credentials for registries
    #[arg(long)]
    pub use_api_socket: bool,
    /// Process and files.
    #[command(flatten)]
    pub process: ProcessFlags,
    /// Volumes, devices.
    #[command(flatten)]
    pub storage: StorageFlags,
    /// Networks, ports, names.
    #[command(flatten)]
    pub network: NetworkFlags,
    /// Limits.
    #[command(flatten)]
    pub resources: ResourceFlags,
    /// Isolation.
    #[command(flatten)]
    pub isolation: IsolationFlags,
    /// Health checks.
    #[command(flatten)]
    pub health: HealthFlags,
    /// Image, command and its arguments
    #[arg(value_name = "IMAGE [COMMAND] [ARG...]", required = true, num_args = 1.., trailing_var_arg = true)]
    pub words: Vec<String>,
}

/// The process, its environment, its life.
#[derive(Debug, Default, Args)]
pub struct ProcessFlags {
    /// Attach to stdin, stdout or stderr
    #[arg(short, long, value_name = "list", value_parser = values::stream)]
    pub attach: Vec<String>,
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Remove the container and its anonymous volumes when it exits
    #[arg(long)]
    pub rm: bool,
    /// Write the container's id to this file
    #[arg(long, value_name = "string")]
    pub cidfile: Option<String>,
    /// Run this and not the image's entrypoint
    #[arg(long, value_name = "string")]
    pub entrypoint: Option<String>,
    /// Set an environment variable
    #[arg(short, long, value_name = "list", value_parser = values::env)]
    pub env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "list")]
    pub env_file: Vec<String>,
    /// User name or id, and group: name|uid[:group|gid]
    #[arg(short, long, value_name = "string", default_value = "", hide_default_value = true)]
    pub user: String,
    /// More groups for the process
    #[arg(long, value_name = "list")]
    pub group_add: Vec<String>,
    /// Working directory inside the container
    #[arg(short, long, value_name = "string", default_value = "", hide_default_value = true)]
    pub workdir: String,
    /// Set a label
    #[arg(short, long, value_name = "list")]
    pub label: Vec<String>,
    /// Read labels from a file
    #[arg(long, value_name = "list")]
    pub label_file: Vec<String>,
    /// Add an annotation to the container, for the OCI runtime
    #[arg(long, value_name = "map", value_parser = values::map)]
    pub annotation: Vec<(String, String)>,
    /// What to do when the container exits: no, always, unless-stopped, on-failure[:max]
    #[arg(long, value_name = "string", default_value = "no")]
    pub restart: String,
    /// Run an init inside the container that passes signals on and reaps processes
    #[arg(long)]
    pub init: bool,
    /// Signal that stops the container
    #[arg(long, value_name = "string")]
    pub stop_signal: Option<String>,
    /// Seconds to wait before killing it on stop
    #[arg(long, value_name = "int", value_parser = values::int)]
    pub stop_timeout: Option<i64>,
    /// Where the output is logged
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub log_driver: String,
    /// Option of the log driver
    #[arg(long, value_name = "list")]
    pub log_opt: Vec<String>,
}

/// Files, volumes, devices.
#[derive(Debug, Default, Args)]
pub struct StorageFlags {
    /// Mount a folder of the host, or a volume: [source:]target[:options]
    #[arg(short, long, value_name = "list")]
    pub volume: Vec<String>,
    /// Driver of the volumes
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub volume_driver: String,
    /// Mount the volumes of another container
    #[arg(long, value_name = "list")]
    pub volumes_from: Vec<String>,
    /// Mount something: type=bind|volume|tmpfs|image,source=,target=,...
    #[arg(long, value_name = "mount", value_parser = crate::options::mounts::parse)]
    pub mount: Vec<crate::options::mounts::Mount>,
    /// Mount a tmpfs: path[:options]
    #[arg(long, value_name = "list")]
    pub tmpfs: Vec<String>,
    /// Nothing on the root filesystem can be written
    #[arg(long)]
    pub read_only: bool,
    /// Size of /dev/shm
    #[arg(long, value_name = "bytes", value_parser = values::bytes)]
    pub shm_size: Option<ByteSize>,
    /// Option of the storage driver
    #[arg(long, value_name = "list")]
    pub storage_opt: Vec<String>,
    /// Add a device of the host
    #[arg(long, value_name = "list")]
    pub device: Vec<String>,
    /// Rule for the cgroup's list of devices
    #[arg(long, value_name = "list", value_parser = crate::options::devices::check_rule)]
    pub device_cgroup_rule: Vec<String>,
    /// Add GPUs: all, a number, or device=...,capabilities=...
    #[arg(long, value_name = "gpu-request", value_parser = crate::options::devices::parse_gpus)]
    pub gpus: Vec<crate::options::devices::GpuRequest>,
}

/// Networks, ports, names.
#[derive(Debug, Default, Args)]
pub struct NetworkFlags {
    /// Connect to a network: bridge, host, none, container:NAME, or a network's name
    #[arg(long, alias = "net", value_name = "network", value_parser = crate::options::networks::parse)]
    pub network: Vec<crate::options::networks::Attachment>,
    /// Another name of the container in its network
    #[arg(long, alias = "net-alias", value_name = "list")]
    pub network_alias: Vec<String>,
    /// IPv4 address
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub ip: String,
    /// IPv6 address
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub ip6: String,
    /// Link-local addresses
    #[arg(long, value_name = "list")]
    pub link_local_ip: Vec<String>,
    /// MAC address
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub mac_address: String,
    /// Link to another container: name[:alias]
    #[arg(long, value_name = "list", value_parser = values::link)]
    pub link: Vec<String>,
    /// Publish a port: [[address:]port:]port[/protocol]
    #[arg(short, long, value_name = "list")]
    pub publish: Vec<String>,
    /// Publish all exposed ports on free ports
    #[arg(short = 'P', long)]
    pub publish_all: bool,
    /// Expose a port or a range of ports
    #[arg(long, value_name = "list")]
    pub expose: Vec<String>,
    /// Host name
    #[arg(short = 'h', long, value_name = "string", default_value = "", hide_default_value = true)]
    pub hostname: String,
    /// NIS domain name
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub domainname: String,
    /// Line for /etc/hosts: name:address
    #[arg(long, value_name = "list", value_parser = values::extra_host)]
    pub add_host: Vec<String>,
    /// DNS server
    #[arg(long, value_name = "list", value_parser = values::ip_address)]
    pub dns: Vec<String>,
    /// DNS option
    #[arg(long, alias = "dns-opt", value_name = "list")]
    pub dns_option: Vec<String>,
    /// DNS search domain
    #[arg(long, value_name = "list", value_parser = values::dns_search)]
    pub dns_search: Vec<String>,
}

/// Limits.
#[derive(Debug, Default, Args)]
pub struct ResourceFlags {
    /// Memory limit
    #[arg(short, long, value_name = "bytes", value_parser = values::bytes)]
    pub memory: Option<ByteSize>,
    /// Memory limit while the host is short of memory
    #[arg(long, value_name = "bytes", value_parser = values::bytes)]
    pub memory_reservation: Option<ByteSize>,
    /// Memory and swap together; -1: any amount of swap
    #[arg(long, value_name = "bytes", value_parser = values::bytes_or_unlimited)]
    pub memory_swap: Option<ByteSize>,
    /// How eager to swap, 0 to 100
    #[arg(long, value_name = "int", value_parser = values::int, default_value = "-1")]
    pub memory_swappiness: i64,
    /// Kernel memory limit (has no effect any more)
    #[arg(long, value_name = "bytes", value_parser = values::bytes, hide = true)]
    pub kernel_memory: Option<ByteSize>,
    /// Number of CPUs
    #[arg(long, value_name = "decimal", value_parser = values::cpus)]
    pub cpus: Option<i64>,
    /// Relative weight of CPU time
    #[arg(short = 'c', long, value_name = "int", value_parser = values::int, default_value = "0", hide_default_value = true)]
    pub cpu_shares: i64,
    /// Period of the CPU limit, microseconds
    #[arg(long, value_name = "int", value_parser = values::int, default_value = "0", hide_default_value = true)]
    pub cpu_period: i64,
    /// CPU time per period, microseconds
    #[arg(long, value_name = "int", value_parser = values::int, default_value = "0", hide_default_value = true)]
    pub cpu_quota: i64,
    /// Period of the real-time limit, microseconds
    #[arg(long, value_name = "int", value_parser = values::int, default_value = "0", hide_default_value = true)]
    pub cpu_rt_period: i64,
    /// Real-time CPU time per period, microseconds
    #[arg(long, value_name = "int", value_parser = values::int, default_value = "0", hide_default_value = true)]
    pub cpu_rt_runtime: i64,
    /// CPUs to run on: 0-3 or 0,1
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub cpuset_cpus: String,
    /// Memory nodes to use: 0-3 or 0,1
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub cpuset_mems: String,
    /// Number of processes; -1: any
    #[arg(long, value_name = "int", value_parser = values::int, default_value = "0", hide_default_value = true)]
    pub pids_limit: i64,
    /// Relative weight of block IO, 10 to 1000; 0: off
    #[arg(long, value_name = "uint16", value_parser = values::uint16, default_value = "0", hide_default_value = true)]
    pub blkio_weight: u16,
    /// Relative weight for one device: path:weight
    #[arg(long, value_name = "list", value_parser = crate::options::devices::parse_weight)]
    pub blkio_weight_device: Vec<crate::options::devices::WeightDevice>,
    /// Read rate from a device, bytes per second
    #[arg(long, value_name = "list", value_parser = crate::options::devices::parse_bps)]
    pub device_read_bps: Vec<crate::options::devices::ThrottleDevice>,
    /// Write rate to a device, bytes per second
    #[arg(long, value_name = "list", value_parser = crate::options::devices::parse_bps)]
    pub device_write_bps: Vec<crate::options::devices::ThrottleDevice>,
    /// Read rate from a device, operations per second
    #[arg(long, value_name = "list", value_parser = crate::options::devices::parse_iops)]
    pub device_read_iops: Vec<crate::options::devices::ThrottleDevice>,
    /// Write rate to a device, operations per second
    #[arg(long, value_name = "list", value_parser = crate::options::devices::parse_iops)]
    pub device_write_iops: Vec<crate::options::devices::ThrottleDevice>,
    /// No OOM killer
    #[arg(long)]
    pub oom_kill_disable: bool,
    /// How readily the OOM killer takes it, -1000 to 1000
    #[arg(long, value_name = "int", value_parser = values::int, default_value = "0", hide_default_value = true)]
    pub oom_score_adj: i64,
    /// Resource limit: name=soft[:hard]
    #[arg(long, value_name = "ulimit", value_parser = crate::options::limits::parse)]
    pub ulimit: Vec<crate::options::limits::Ulimit>,
    /// Parent of the container's cgroup
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub cgroup_parent: String,
    /// Number of CPUs (Windows only)
    #[arg(long, value_name = "int", value_parser = values::int, hide = true)]
    pub cpu_count: Option<i64>,
    /// Percent of CPU (Windows only)
    #[arg(long, value_name = "int", value_parser = values::int, hide = true)]
    pub cpu_percent: Option<i64>,
    /// IO bandwidth of the system drive (Windows only)
    #[arg(long, value_name = "bytes", value_parser = values::bytes, hide = true)]
    pub io_maxbandwidth: Option<ByteSize>,
    /// IO operations of the system drive (Windows only)
    #[arg(long, value_name = "int", value_parser = values::int, hide = true)]
    pub io_maxiops: Option<i64>,
}

/// Isolation and privileges.
#[derive(Debug, Default, Args)]
pub struct IsolationFlags {
    /// Add a capability
    #[arg(long, value_name = "list")]
    pub cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "list")]
    pub cap_drop: Vec<String>,
    /// All privileges
    #[arg(long)]
    pub privileged: bool,
    /// Security option: no-new-privileges, seccomp=FILE|unconfined, apparmor=, label=, ...
    #[arg(long, value_name = "list")]
    pub security_opt: Vec<String>,
    /// Kernel parameter of the container's namespaces
    #[arg(long, value_name = "map", value_parser = values::sysctl)]
    pub sysctl: Vec<(String, String)>,
    /// PID namespace: host or container:NAME
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub pid: String,
    /// IPC namespace: private, shareable, none, host or container:NAME
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub ipc: String,
    /// UTS namespace: host
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub uts: String,
    /// User namespace: host
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub userns: String,
    /// Cgroup namespace: host or private
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub cgroupns: String,
    /// OCI runtime
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub runtime: String,
    /// Isolation technology (Windows only; "default" elsewhere)
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub isolation: String,
}

/// Health checks.
#[derive(Debug, Default, Args)]
pub struct HealthFlags {
    /// Command that checks health
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub health_cmd: String,
    /// Time between checks
    #[arg(long, value_name = "duration", value_parser = values::duration)]
    pub health_interval: Option<Nanos>,
    /// Failures in a row before the container counts as unhealthy
    #[arg(long, value_name = "int", value_parser = values::int, default_value = "0", hide_default_value = true)]
    pub health_retries: i64,
    /// Time between checks while it starts
    #[arg(long, value_name = "duration", value_parser = values::duration)]
    pub health_start_interval: Option<Nanos>,
    /// Time for starting, in which failures don't count
    #[arg(long, value_name = "duration", value_parser = values::duration)]
    pub health_start_period: Option<Nanos>,
    /// Time a check may take
    #[arg(long, value_name = "duration", value_parser = values::duration)]
    pub health_timeout: Option<Nanos>,
    /// No health check, whatever the image says
    #[arg(long)]
    pub no_healthcheck: bool,
}
