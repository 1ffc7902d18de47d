//! Arguments of the commands on registries.

use clap::Args;

/// `login`
#[derive(Debug, Args)]
pub struct LoginArgs {
    /// Password or access token (others can read it from the list of processes: prefer --password-stdin)
    #[arg(short, long, value_name = "string")]
    pub password: Option<String>,
    /// Read the password or access token from standard input
    #[arg(long)]
    pub password_stdin: bool,
    /// User name
    #[arg(short, long, value_name = "string")]
    pub username: Option<String>,
    /// Host and port of the registry (default: Docker Hub)
    #[arg(value_name = "SERVER")]
    pub server: Option<String>,
}

/// `logout`
#[derive(Debug, Args)]
pub struct LogoutArgs {
    /// Host and port of the registry (default: Docker Hub)
    #[arg(value_name = "SERVER")]
    pub server: Option<String>,
}

/// `search`
#[derive(Debug, Args)]
pub struct SearchArgs {
    /// Only those that match: is-official=BOOL, stars=NUMBER
    #[arg(short, long, value_name = "filter", value_parser = super::values::filter)]
    pub filter: Vec<(String, String)>,
    /// Output as 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(long, value_name = "string")]
    pub format: Option<String>,
    /// How many at most
    #[arg(long, value_name = "int", default_value = "0", hide_default_value = true, value_parser = super::values::int)]
    pub limit: i64,
    /// Don't shorten the output
    #[arg(long)]
    pub no_trunc: bool,
    /// What to look for
    #[arg(value_name = "TERM", required = true)]
    pub term: String,
}

/// `manifest inspect`
#[derive(Debug, Args)]
pub struct ManifestInspectArgs {
    /// Talk to a registry without TLS, or with a certificate that nobody vouches for
    #[arg(long)]
    pub insecure: bool,
    /// Every manifest of a list, with its descriptor
    #[arg(short, long)]
    pub verbose: bool,
    /// Image reference
    #[arg(value_name = "[MANIFEST_LIST] MANIFEST", required = true)]
    pub first: String,
    /// The same after the name of a list
    #[arg(value_name = "MANIFEST", hide = true)]
    pub second: Option<String>,
}

/// `manifest annotate`
#[derive(Debug, Args)]
pub struct ManifestAnnotateArgs {
    /// Architecture
    #[arg(long, value_name = "string")]
    pub arch: Option<String>,
    /// Operating system
    #[arg(long, value_name = "string")]
    pub os: Option<String>,
    /// Features of the operating system
    #[arg(long, value_name = "strings", value_delimiter = ',')]
    pub os_features: Vec<String>,
    /// Version of the operating system
    #[arg(long, value_name = "string")]
    pub os_version: Option<String>,
    /// Variant of the architecture
    #[arg(long, value_name = "string")]
    pub variant: Option<String>,
    /// The list
    #[arg(value_name = "MANIFEST_LIST", required = true)]
    pub list: String,
    /// A manifest in it
    #[arg(value_name = "MANIFEST", required = true)]
    pub manifest: String,
}

/// `manifest create`
#[derive(Debug, Args)]
pub struct ManifestCreateArgs {
    /// Add to a list that exists
    #[arg(short, long)]
    pub amend: bool,
    /// Talk to a registry without TLS, or with a certificate that nobody vouches for
    #[arg(long)]
    pub insecure: bool,
    /// The list
    #[arg(value_name = "MANIFEST_LIST", required = true)]
    pub list: String,
    /// Its manifests
    #[arg(value_name = "MANIFEST", required = true)]
    pub manifests: Vec<String>,
}

/// `manifest push`
#[derive(Debug, Args)]
pub struct ManifestPushArgs {
    /// Talk to a registry without TLS, or with a certificate that nobody vouches for
    #[arg(long)]
    pub insecure: bool,
    /// Remove the local list when it is pushed
    #[arg(short, long)]
    pub purge: bool,
    /// The list
    #[arg(value_name = "MANIFEST_LIST", required = true)]
    pub list: String,
}

/// `manifest rm`
#[derive(Debug, Args)]
pub struct ManifestRmArgs {
    /// The lists
    #[arg(value_name = "MANIFEST_LIST", required = true)]
    pub lists: Vec<String>,
}
