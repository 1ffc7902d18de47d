//! Arguments of `build`, of `builder prune` and of the other prunes.

use super::values::{self, ByteSize};
use clap::Args;

/// `build`, `image build`, `builder build`: the flags of BuildKit's client and of docker's classic builder. A flag that only the
/// other builder knows is refused.
#[derive(Debug, Default, Args)]
pub struct BuildArgs {
    /// Line for /etc/hosts: name:address
    #[arg(long, value_name = "list", value_parser = values::extra_host)]
    pub add_host: Vec<String>,
    /// What steps may do beyond the usual: network.host, security.insecure, device
    #[arg(long, value_name = "strings", value_delimiter = ',')]
    pub allow: Vec<String>,
    /// Annotation of the image: [type:]key=value
    #[arg(long, value_name = "stringArray")]
    pub annotation: Vec<String>,
    /// Attestation of the image: type=sbom, type=provenance,mode=max
    #[arg(long, value_name = "stringArray")]
    pub attest: Vec<String>,
    /// Variable for the Dockerfile
    #[arg(long, value_name = "list", value_parser = values::env)]
    pub build_arg: Vec<String>,
    /// Another context: name=path, name=https://..., name=docker-image://...
    #[arg(long, value_name = "stringArray")]
    pub build_context: Vec<String>,
    /// Caches to build from: an image, or type=registry,ref=...
    #[arg(long, value_name = "stringArray")]
    pub cache_from: Vec<String>,
    /// Where to export the cache: an image, or type=registry,ref=..., type=inline
    #[arg(long, value_name = "stringArray")]
    pub cache_to: Vec<String>,
    /// What is asked of the Dockerfile: build, check, outline, targets
    #[arg(long, value_name = "string", default_value = "build")]
    pub call: String,
    /// Parent of the cgroups of RUN
    #[arg(long, value_name = "string")]
    pub cgroup_parent: Option<String>,
    /// Check the Dockerfile only (the same as --call=check)
    #[arg(long)]
    pub check: bool,
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
    /// Put the image into the engine's store (the same as --output=type=docker)
    #[arg(long)]
    pub load: bool,
    /// Memory limit
    #[arg(short, long, value_name = "bytes", value_parser = values::bytes)]
    pub memory: Option<ByteSize>,
    /// Memory and swap together; -1: no limit on swap
    #[arg(long, value_name = "bytes", value_parser = values::bytes_or_unlimited)]
    pub memory_swap: Option<ByteSize>,
    /// Write facts about the result to this file, as JSON
    #[arg(long, value_name = "string")]
    pub metadata_file: Option<String>,
    /// Network of RUN
    #[arg(long, value_name = "string", default_value = "default")]
    pub network: String,
    /// Use no layers of earlier builds
    #[arg(long)]
    pub no_cache: bool,
    /// Stages that use nothing of earlier builds
    #[arg(long, value_name = "stringArray", value_delimiter = ',')]
    pub no_cache_filter: Vec<String>,
    /// Where the result goes: a folder, or type=local|tar|oci|docker|image|registry,dest=...
    #[arg(short, long, value_name = "stringArray")]
    pub output: Vec<String>,
    /// Platforms of the image: os/arch[/variant]
    #[arg(long, value_name = "stringArray", value_delimiter = ',')]
    pub platform: Vec<String>,
    /// How progress is shown: auto, plain, tty, rawjson, quiet (default: BUILDKIT_PROGRESS, then auto)
    #[arg(long, value_name = "string")]
    pub progress: Option<String>,
    /// Attest how the image came about (the same as --attest=type=provenance)
    #[arg(long, value_name = "string")]
    pub provenance: Option<String>,
    /// Look for newer images to build on
    #[arg(long)]
    pub pull: bool,
    /// Upload the image to its registry (the same as --output=type=registry)
    #[arg(long)]
    pub push: bool,
    /// Print the id only
    #[arg(short, long)]
    pub quiet: bool,
    /// Remove intermediate containers
    #[arg(long, default_value = "true", action = clap::ArgAction::Set)]
    pub rm: bool,
    /// Attest what is in the image (the same as --attest=type=sbom)
    #[arg(long, value_name = "string")]
    pub sbom: Option<String>,
    /// A secret for RUN: id=NAME[,src=FILE|,env=VARIABLE]
    #[arg(long, value_name = "stringArray")]
    pub secret: Vec<String>,
    /// Security options
    #[arg(long, value_name = "strings", value_delimiter = ',')]
    pub security_opt: Vec<String>,
    /// Size of /dev/shm
    #[arg(long, value_name = "bytes", value_parser = values::bytes)]
    pub shm_size: Option<ByteSize>,
    /// Put the new layers together (experimental engines only)
    #[arg(long, hide = true)]
    pub squash: bool,
    /// SSH agent or keys for RUN: default, or ID=SOCKET|KEY[,KEY]
    #[arg(long, value_name = "stringArray")]
    pub ssh: Vec<String>,
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

/// `builder du`
#[derive(Debug, Args)]
pub struct BuilderDuArgs {
    /// Only what matches: id=ID, type=TYPE, inuse=true and others
    #[arg(long, value_name = "filter", value_parser = values::filter)]
    pub filter: Vec<(String, String)>,
    /// Everything that is known of each
    #[arg(long)]
    pub verbose: bool,
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
