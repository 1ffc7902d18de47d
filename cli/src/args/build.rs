//! Arguments of `build`, of `builder prune` and of the other prunes.

use super::values::{self, ByteSize};
use clap::Args;

/// `build`, `image build`, `builder build`: docker's classic builder. Where the plugin buildx is installed, it gets the words
/// as they are.
#[derive(Debug, Default, Args)]
pub struct BuildArgs {
    /// Line for /etc/hosts: name:address
    #[arg(long, value_name = "list", value_parser = values::extra_host)]
    pub add_host: Vec<String>,
    /// Variable for the Dockerfile
    #[arg(long, value_name = "list", value_parser = values::env)]
    pub build_arg: Vec<String>,
    /// Images whose layers may be used again
    #[arg(long, value_name = "strings", value_delimiter = ',')]
    pub cache_from: Vec<String>,
    /// Parent of the cgroups of RUN
    #[arg(long, value_name = "string")]
    pub cgroup_parent: Option<String>,
    /// Send the context compressed
    #[arg(long)]
    pub compress: bool,
    /// Period of the CPU quota, microseconds
    #[arg(long, value_name = "int", value_parser = values::int)]
    pub cpu_period: Option<i64>,
    /// CPU quota, microseconds
    #[arg(long, value_name = "int", value_parser = values::int)]
    pub cpu_quota: Option<i64>,
    /// Weight of the CPU shares
    #[arg(short = 'c', long, value_name = "int", value_parser = values::int)]
    pub cpu_shares: Option<i64>,
    /// CPUs to use: 0-3, 0,1
    #[arg(long, value_name = "string")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use: 0-3, 0,1
    #[arg(long, value_name = "string")]
    pub cpuset_mems: Option<String>,
    /// Accepted for docker's sake, changes nothing
    #[arg(long, hide = true, default_value = "true", action = clap::ArgAction::Set)]
    pub disable_content_trust: bool,
    /// The Dockerfile (default: Dockerfile in the context); "-" reads it from standard input
    #[arg(short, long, value_name = "string")]
    pub file: Option<String>,
    /// Remove intermediate containers, even after a failure
    #[arg(long)]
    pub force_rm: bool,
    /// Write the image's id to this file
    #[arg(long, value_name = "string")]
    pub iidfile: Option<String>,
    /// Isolation technology (Windows only; "default" elsewhere)
    #[arg(long, value_name = "string")]
    pub isolation: Option<String>,
    /// Set a label
    #[arg(long, value_name = "list")]
    pub label: Vec<String>,
    /// Memory limit
    #[arg(short, long, value_name = "bytes", value_parser = values::bytes)]
    pub memory: Option<ByteSize>,
    /// Memory and swap together; -1: no limit on swap
    #[arg(long, value_name = "bytes", value_parser = values::bytes_or_unlimited)]
    pub memory_swap: Option<ByteSize>,
    /// Network of RUN
    #[arg(long, value_name = "string", default_value = "default")]
    pub network: String,
    /// Use no layers of earlier builds
    #[arg(long)]
    pub no_cache: bool,
    /// Platform of the image: os/arch[/variant]
    #[arg(long, value_name = "string")]
    pub platform: Option<String>,
    /// Look for newer images to build on
    #[arg(long)]
    pub pull: bool,
    /// Print the id only
    #[arg(short, long)]
    pub quiet: bool,
    /// Remove intermediate containers
    #[arg(long, default_value = "true", action = clap::ArgAction::Set)]
    pub rm: bool,
    /// Security options
    #[arg(long, value_name = "strings", value_delimiter = ',')]
    pub security_opt: Vec<String>,
    /// Size of /dev/shm
    #[arg(long, value_name = "bytes", value_parser = values::bytes)]
    pub shm_size: Option<ByteSize>,
    /// Put the new layers together (experimental engines only)
    #[arg(long, hide = true)]
    pub squash: bool,
    /// Name of the image: name[:tag]
    #[arg(short, long, value_name = "list", value_parser = values::image_name)]
    pub tag: Vec<String>,
    /// Stop at this stage
    #[arg(long, value_name = "string")]
    pub target: Option<String>,
    /// Resource limit: name=soft[:hard]
    #[arg(long, value_name = "ulimit", value_parser = crate::options::limits::parse)]
    pub ulimit: Vec<crate::options::limits::Ulimit>,
    /// Folder, URL, or "-" for a Dockerfile or an archive on standard input
    #[arg(value_name = "PATH | URL | -", required = true)]
    pub context: String,
}

/// `builder prune`
#[derive(Debug, Args)]
pub struct BuilderPruneArgs {
    /// All of it, not only what nothing refers to
    #[arg(short, long)]
    pub all: bool,
    /// Only what matches: until=TIME and others
    #[arg(long, value_name = "filter", value_parser = values::filter)]
    pub filter: Vec<(String, String)>,
    /// Don't ask
    #[arg(short, long)]
    pub force: bool,
    /// Keep as much as this
    #[arg(long, value_name = "bytes", value_parser = values::bytes)]
    pub keep_storage: Option<ByteSize>,
}

/// `container prune`, `network prune`
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Only those that match: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "filter", value_parser = values::filter)]
    pub filter: Vec<(String, String)>,
    /// Don't ask
    #[arg(short, long)]
    pub force: bool,
}

/// `system prune`
#[derive(Debug, Args)]
pub struct SystemPruneArgs {
    /// All images that no container uses, not only those without a name
    #[arg(short, long)]
    pub all: bool,
    /// Only what matches: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "filter", value_parser = values::filter)]
    pub filter: Vec<(String, String)>,
    /// Don't ask
    #[arg(short, long)]
    pub force: bool,
    /// Anonymous volumes, too
    #[arg(long)]
    pub volumes: bool,
}
