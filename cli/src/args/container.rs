//! Arguments of the commands on existing containers.

use clap::Args;

/// One or more containers and no flags (wait, pause, unpause).
#[derive(Debug, Args)]
pub struct Names {
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
}

/// `exec`
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Leave the command in the background
    #[arg(short, long)]
    pub detach: bool,
    /// Other keys for leaving the container
    #[arg(long, value_name = "string")]
    pub detach_keys: Option<String>,
    /// Set an environment variable
    #[arg(short, long, value_name = "list", value_parser = super::values::env)]
    pub env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "list")]
    pub env_file: Vec<String>,
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command all privileges
    #[arg(long)]
    pub privileged: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// User name or id, and group: name|uid[:group|gid]
    #[arg(short, long, value_name = "string", default_value = "", hide_default_value = true)]
    pub user: String,
    /// Working directory inside the container
    #[arg(short, long, value_name = "string", default_value = "", hide_default_value = true)]
    pub workdir: String,
    /// Container, command and its arguments
    #[arg(value_name = "CONTAINER COMMAND [ARG...]", required = true, num_args = 2.., trailing_var_arg = true)]
    pub words: Vec<String>,
}

/// `ps`, `container ls`
#[derive(Debug, Args)]
pub struct PsArgs {
    /// All containers, not only those that run
    #[arg(short, long)]
    pub all: bool,
    /// Only those that match: key=value
    #[arg(short, long, value_name = "filter", value_parser = super::values::filter)]
    pub filter: Vec<(String, String)>,
    /// Output as 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(long, value_name = "string")]
    pub format: Option<String>,
    /// The last n created containers, in any state
    #[arg(short = 'n', long, value_name = "int", value_parser = super::values::int, default_value = "-1")]
    pub last: i64,
    /// The container created last, in any state
    #[arg(short, long)]
    pub latest: bool,
    /// Don't shorten the output
    #[arg(long)]
    pub no_trunc: bool,
    /// Only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Sizes of the files, too
    #[arg(short, long)]
    pub size: bool,
}

/// `start`
#[derive(Debug, Args)]
pub struct StartArgs {
    /// Attach to the output and pass signals on
    #[arg(short, long)]
    pub attach: bool,
    /// Start from this checkpoint (where the engine has checkpoints)
    #[arg(long, value_name = "string", hide = true)]
    pub checkpoint: Option<String>,
    /// Folder of checkpoints (where the engine has checkpoints)
    #[arg(long, value_name = "string", hide = true)]
    pub checkpoint_dir: Option<String>,
    /// Other keys for leaving the container
    #[arg(long, value_name = "string")]
    pub detach_keys: Option<String>,
    /// Attach to standard input
    #[arg(short, long)]
    pub interactive: bool,
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
}

/// `attach`
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// Other keys for leaving the container
    #[arg(long, value_name = "string")]
    pub detach_keys: Option<String>,
    /// Leave standard input alone
    #[arg(long)]
    pub no_stdin: bool,
    /// Pass signals on to the process
    #[arg(long, default_value = "true", action = clap::ArgAction::Set)]
    pub sig_proxy: bool,
    /// Name or id
    #[arg(value_name = "CONTAINER", required = true)]
    pub container: String,
}

/// `stop`, `restart`
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Signal to send first
    #[arg(short, long, value_name = "string")]
    pub signal: Option<String>,
    /// Seconds to wait before killing
    #[arg(short = 't', long, alias = "time", value_name = "int", value_parser = super::values::int)]
    pub timeout: Option<i64>,
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
}

/// `kill`
#[derive(Debug, Args)]
pub struct KillArgs {
    /// Signal to send
    #[arg(short, long, value_name = "string")]
    pub signal: Option<String>,
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
}

/// `rm`
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Kill it first when it runs
    #[arg(short, long)]
    pub force: bool,
    /// Remove the link, not the container
    #[arg(short, long)]
    pub link: bool,
    /// Remove its anonymous volumes, too
    #[arg(short, long)]
    pub volumes: bool,
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
}

/// `rename`
#[derive(Debug, Args)]
pub struct RenameArgs {
    /// Name or id
    #[arg(value_name = "CONTAINER", required = true)]
    pub container: String,
    /// The name it is to have
    #[arg(value_name = "NEW_NAME", required = true)]
    pub new_name: String,
}

/// `logs`
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Labels and environment that the log carries
    #[arg(long)]
    pub details: bool,
    /// Stay and print what follows
    #[arg(short, long)]
    pub follow: bool,
    /// Only what was written since: a time (2013-01-02T13:23:37Z) or a duration ago (42m)
    #[arg(long, value_name = "string")]
    pub since: Option<String>,
    /// Number of lines from the end
    #[arg(short = 'n', long, value_name = "string", default_value = "all")]
    pub tail: String,
    /// Print the time of each line
    #[arg(short, long)]
    pub timestamps: bool,
    /// Only what was written before: a time (2013-01-02T13:23:37Z) or a duration ago (42m)
    #[arg(long, value_name = "string")]
    pub until: Option<String>,
    /// Name or id
    #[arg(value_name = "CONTAINER", required = true)]
    pub container: String,
}

/// `port`
#[derive(Debug, Args)]
pub struct PortArgs {
    /// Name or id
    #[arg(value_name = "CONTAINER", required = true)]
    pub container: String,
    /// Port in the container
    #[arg(value_name = "PRIVATE_PORT[/PROTO]")]
    pub port: Option<String>,
}

/// `container inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Output as 'json' or a Go template
    #[arg(short, long, value_name = "string")]
    pub format: Option<String>,
    /// Sizes of the files, too
    #[arg(short, long)]
    pub size: bool,
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
}

/// `cp`
#[derive(Debug, Args)]
pub struct CpArgs {
    /// Keep user and group ids
    #[arg(short, long)]
    pub archive: bool,
    /// Follow a symbolic link that the source is
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// No progress (the default without a terminal)
    #[arg(short, long)]
    pub quiet: bool,
    /// CONTAINER:PATH, a path of the client, or "-" for an archive on standard input
    #[arg(value_name = "CONTAINER:SRC_PATH|SRC_PATH|-", required = true)]
    pub source: String,
    /// CONTAINER:PATH, a path of the client, or "-" for an archive on standard output
    #[arg(value_name = "CONTAINER:DEST_PATH|DEST_PATH|-", required = true)]
    pub destination: String,
}

/// `top`
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Container, and options for ps
    #[arg(value_name = "CONTAINER [ps OPTIONS]", required = true, num_args = 1.., trailing_var_arg = true)]
    pub words: Vec<String>,
}

/// `stats`
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// All containers, not only those that run
    #[arg(short, long)]
    pub all: bool,
    /// Output as 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(long, value_name = "string")]
    pub format: Option<String>,
    /// Print once and end
    #[arg(long)]
    pub no_stream: bool,
    /// Don't shorten the output
    #[arg(long)]
    pub no_trunc: bool,
    /// Names or ids
    #[arg(value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// `update`
#[derive(Debug, Default, Args)]
pub struct UpdateArgs {
    /// Publish one more port, as with run; berth's own
    #[arg(long, value_name = "list")]
    pub publish_add: Vec<String>,
    /// Publish a port of the container no more: PORT[/PROTOCOL]; berth's own
    #[arg(long, value_name = "list")]
    pub publish_rm: Vec<String>,
    /// Weight of block IO, 10 to 1000; 0: default
    #[arg(long, value_name = "uint16", value_parser = super::values::uint16)]
    pub blkio_weight: Option<u16>,
    /// Period of the CPU quota, microseconds
    #[arg(long, value_name = "int", value_parser = super::values::int)]
    pub cpu_period: Option<i64>,
    /// CPU quota, microseconds
    #[arg(long, value_name = "int", value_parser = super::values::int)]
    pub cpu_quota: Option<i64>,
    /// Realtime period, microseconds
    #[arg(long, value_name = "int", value_parser = super::values::int)]
    pub cpu_rt_period: Option<i64>,
    /// Realtime runtime, microseconds
    #[arg(long, value_name = "int", value_parser = super::values::int)]
    pub cpu_rt_runtime: Option<i64>,
    /// Weight of the CPU shares
    #[arg(short = 'c', long, value_name = "int", value_parser = super::values::int)]
    pub cpu_shares: Option<i64>,
    /// Number of CPUs
    #[arg(long, value_name = "decimal", value_parser = super::values::cpus)]
    pub cpus: Option<i64>,
    /// CPUs to use: 0-3, 0,1
    #[arg(long, value_name = "string")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use: 0-3, 0,1
    #[arg(long, value_name = "string")]
    pub cpuset_mems: Option<String>,
    /// Without effect: kernels since 5.4 have no such limit
    #[arg(long, value_name = "bytes", value_parser = super::values::bytes, hide = true)]
    pub kernel_memory: Option<super::values::ByteSize>,
    /// Memory limit
    #[arg(short, long, value_name = "bytes", value_parser = super::values::bytes)]
    pub memory: Option<super::values::ByteSize>,
    /// Soft memory limit
    #[arg(long, value_name = "bytes", value_parser = super::values::bytes)]
    pub memory_reservation: Option<super::values::ByteSize>,
    /// Memory and swap together; -1: no limit on swap
    #[arg(long, value_name = "bytes", value_parser = super::values::bytes_or_unlimited)]
    pub memory_swap: Option<super::values::ByteSize>,
    /// Number of processes; -1: no limit
    #[arg(long, value_name = "int", value_parser = super::values::int)]
    pub pids_limit: Option<i64>,
    /// What to do when the container exits: no, always, unless-stopped, on-failure[:max]
    #[arg(long, value_name = "string")]
    pub restart: Option<String>,
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
}
