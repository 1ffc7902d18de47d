//! Arguments of the commands on volumes.

use super::values::{self, ByteSize};
use clap::Args;

/// `volume create`
#[derive(Debug, Default, Args)]
pub struct CreateArgs {
    /// Availability of a cluster volume: active, pause or drain
    #[arg(long, value_name = "string", default_value = "active")]
    pub availability: String,
    /// Driver of the volume
    #[arg(short, long, value_name = "string", default_value = "local")]
    pub driver: String,
    /// Group of a cluster volume
    #[arg(long, value_name = "string")]
    pub group: Option<String>,
    /// Set a label
    #[arg(long, value_name = "list")]
    pub label: Vec<String>,
    /// Most bytes of a cluster volume
    #[arg(long, value_name = "bytes", value_parser = values::bytes)]
    pub limit_bytes: Option<ByteSize>,
    /// What docker called the argument before
    #[arg(long, value_name = "string", hide = true)]
    pub name: Option<String>,
    /// Option of the driver
    #[arg(short, long, value_name = "map")]
    pub opt: Vec<String>,
    /// Least bytes of a cluster volume
    #[arg(long, value_name = "bytes", value_parser = values::bytes)]
    pub required_bytes: Option<ByteSize>,
    /// Who may use a cluster volume: single or multi
    #[arg(long, value_name = "string", default_value = "single")]
    pub scope: String,
    /// Secret for a cluster volume
    #[arg(long, value_name = "map", value_parser = values::map)]
    pub secret: Vec<(String, String)>,
    /// How a cluster volume is shared: none, readonly, onewriter or all
    #[arg(long, value_name = "string", default_value = "none")]
    pub sharing: String,
    /// A place where a cluster volume would best be
    #[arg(long, value_name = "list")]
    pub topology_preferred: Vec<String>,
    /// A place where a cluster volume must be
    #[arg(long, value_name = "list")]
    pub topology_required: Vec<String>,
    /// Access to a cluster volume: mount or block
    #[arg(long, value_name = "string", default_value = "block")]
    pub r#type: String,
    /// Name of the volume
    #[arg(value_name = "VOLUME")]
    pub volume: Option<String>,
}

/// `volume export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Write to this file and not to standard output
    #[arg(short, long, value_name = "string")]
    pub output: Option<String>,
    /// Name of the volume
    #[arg(value_name = "VOLUME", required = true)]
    pub volume: String,
}

/// `volume import`
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Name of the volume
    #[arg(value_name = "VOLUME", required = true)]
    pub volume: String,
    /// A tar archive, which may be packed by gzip, bzip2, xz or zstd; "-" or none for standard input
    #[arg(value_name = "FILE")]
    pub file: Option<String>,
}

/// `volume inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Output as 'json' or a Go template
    #[arg(short, long, value_name = "string")]
    pub format: Option<String>,
    /// Names
    #[arg(value_name = "VOLUME", required = true)]
    pub volumes: Vec<String>,
}

/// `volume ls`
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Only cluster volumes
    #[arg(long)]
    pub cluster: bool,
    /// Only those that match: key=value
    #[arg(short, long, value_name = "filter", value_parser = values::filter)]
    pub filter: Vec<(String, String)>,
    /// Output as 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(long, value_name = "string")]
    pub format: Option<String>,
    /// Only names
    #[arg(short, long)]
    pub quiet: bool,
}

/// `volume prune`
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Volumes with a name of their own, too
    #[arg(short, long)]
    pub all: bool,
    /// Only those that match: label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "filter", value_parser = values::filter)]
    pub filter: Vec<(String, String)>,
    /// Don't ask
    #[arg(short, long)]
    pub force: bool,
}

/// `volume rm`
#[derive(Debug, Args)]
pub struct RmArgs {
    /// A volume that does not exist is no error
    #[arg(short, long)]
    pub force: bool,
    /// Names
    #[arg(value_name = "VOLUME", required = true)]
    pub volumes: Vec<String>,
}

/// `volume update`
#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// Availability of a cluster volume: active, pause or drain
    #[arg(long, value_name = "string", default_value = "active")]
    pub availability: String,
    /// Name
    #[arg(value_name = "VOLUME", required = true)]
    pub volume: String,
}
