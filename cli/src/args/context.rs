//! `berth context ...`

use clap::{Args, Subcommand};

const ENDPOINT: &str = "Docker endpoint config:

NAME                DESCRIPTION
from                Copy named context's Docker endpoint configuration
host                Docker endpoint on which to connect
ca                  Trust certs signed only by this CA
cert                Path to TLS certificate file
key                 Path to TLS key file
skip-tls-verify     Skip TLS certificate validation";

/// `berth context ...`
#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// Create a context
    #[command(after_help = ENDPOINT)]
    Create(CreateArgs),
    /// Export a context to a tar archive FILE or a tar stream on STDOUT.
    Export(ExportArgs),
    /// Import a context from a tar file
    Import(ImportArgs),
    /// Display detailed information on one or more contexts
    Inspect(InspectArgs),
    /// List contexts
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Remove one or more contexts
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Print the name of the current context
    Show(ShowArgs),
    /// Update a context
    #[command(after_help = ENDPOINT)]
    Update(UpdateArgs),
    /// Set the current docker context
    Use(UseArgs),
}

/// `context create`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Description of the context
    #[arg(long, value_name = "string")]
    pub description: Option<String>,
    /// Set the docker endpoint
    #[arg(long, value_name = "stringToString")]
    pub docker: Vec<String>,
    /// Create context from a named context
    #[arg(long, value_name = "string")]
    pub from: Option<String>,
    /// Its name
    #[arg(value_name = "CONTEXT", required = true)]
    pub name: String,
}

/// `context update`
#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// Description of the context
    #[arg(long, value_name = "string")]
    pub description: Option<String>,
    /// Set the docker endpoint
    #[arg(long, value_name = "stringToString")]
    pub docker: Vec<String>,
    /// Its name
    #[arg(value_name = "CONTEXT", required = true)]
    pub name: String,
}

/// `context export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Its name
    #[arg(value_name = "CONTEXT", required = true)]
    pub name: String,
    /// Where to
    #[arg(value_name = "FILE|-")]
    pub file: Option<String>,
}

/// `context import`
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Its name
    #[arg(value_name = "CONTEXT", required = true)]
    pub name: String,
    /// Where from
    #[arg(value_name = "FILE|-", required = true)]
    pub file: String,
}

/// `context inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Format output using a custom template: "json" or a Go template
    #[arg(short, long, value_name = "string")]
    pub format: Option<String>,
    /// Their names
    #[arg(value_name = "CONTEXT")]
    pub names: Vec<String>,
}

/// `context ls`
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Format output using a custom template: "table", "table TEMPLATE", "json" or a Go template
    #[arg(long, value_name = "string")]
    pub format: Option<String>,
    /// Only show context names
    #[arg(short, long)]
    pub quiet: bool,
}

/// `context rm`
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Force the removal of a context in use
    #[arg(short, long)]
    pub force: bool,
    /// Their names
    #[arg(value_name = "CONTEXT", required = true)]
    pub names: Vec<String>,
}

/// `context show`
#[derive(Debug, Args)]
pub struct ShowArgs {}

/// `context use`
#[derive(Debug, Args)]
pub struct UseArgs {
    /// Its name
    #[arg(value_name = "CONTEXT", required = true)]
    pub name: String,
}
