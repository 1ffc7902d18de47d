//! Arguments of the commands on images.

use clap::Args;

/// `pull`
#[derive(Debug, Args)]
pub struct PullArgs {
    /// All tags of the repository
    #[arg(short, long)]
    pub all_tags: bool,
    /// Accepted for docker's sake, changes nothing
    #[arg(long, hide = true, default_value = "true", action = clap::ArgAction::Set)]
    pub disable_content_trust: bool,
    /// Platform to pull: os/arch[/variant]
    #[arg(long, value_name = "string")]
    pub platform: Option<String>,
    /// Print the name only
    #[arg(short, long)]
    pub quiet: bool,
    /// Image reference
    #[arg(value_name = "NAME[:TAG|@DIGEST]", required = true)]
    pub reference: String,
}

/// `images`, `image ls`
#[derive(Debug, Args)]
pub struct ImagesArgs {
    /// Images without a name that others are built on, too
    #[arg(short, long)]
    pub all: bool,
    /// Digests, too
    #[arg(long)]
    pub digests: bool,
    /// Only those that match: key=value
    #[arg(short, long, value_name = "filter", value_parser = super::values::filter)]
    pub filter: Vec<(String, String)>,
    /// Output as 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(long, value_name = "string")]
    pub format: Option<String>,
    /// Don't shorten the output
    #[arg(long)]
    pub no_trunc: bool,
    /// Only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Every image with its platforms below it
    #[arg(long)]
    pub tree: bool,
    /// Only this repository or tag
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub reference: Option<String>,
}

/// `image inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Output as 'json' or a Go template
    #[arg(short, long, value_name = "string")]
    pub format: Option<String>,
    /// Platform of a multi-platform image
    #[arg(long, value_name = "string")]
    pub platform: Option<String>,
    /// Names or ids
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
}

/// `load`
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// Read this file and not standard input
    #[arg(short, long, value_name = "string")]
    pub input: Option<String>,
    /// Platforms to load: os/arch[/variant]
    #[arg(long, value_name = "stringSlice", value_delimiter = ',')]
    pub platform: Vec<String>,
    /// No progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// `import`
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Apply a Dockerfile instruction to the image
    #[arg(short, long, value_name = "list")]
    pub change: Vec<String>,
    /// Message to record
    #[arg(short, long, value_name = "string")]
    pub message: Option<String>,
    /// Platform of the image: os/arch[/variant]
    #[arg(long, value_name = "string")]
    pub platform: Option<String>,
    /// The tarball
    #[arg(value_name = "file|URL|-", required = true)]
    pub source: String,
    /// Name of the image
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub reference: Option<String>,
}

/// `save`
#[derive(Debug, Args)]
pub struct SaveArgs {
    /// Write to this file and not to standard output
    #[arg(short, long, value_name = "string")]
    pub output: Option<String>,
    /// Only these platforms: os/arch[/variant]
    #[arg(long, value_name = "stringSlice", value_delimiter = ',')]
    pub platform: Vec<String>,
    /// Names or ids
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
}

/// `push`
#[derive(Debug, Args)]
pub struct PushArgs {
    /// All tags of the repository
    #[arg(short, long)]
    pub all_tags: bool,
    /// Accepted for docker's sake, changes nothing
    #[arg(long, hide = true, default_value = "true", action = clap::ArgAction::Set)]
    pub disable_content_trust: bool,
    /// Only the manifest of this platform, without the list it is part of: os/arch[/variant]
    #[arg(long, value_name = "string")]
    pub platform: Option<String>,
    /// Print the name only
    #[arg(short, long)]
    pub quiet: bool,
    /// Image reference
    #[arg(value_name = "NAME[:TAG]", required = true)]
    pub reference: String,
}

/// `history`
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// Output as 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(long, value_name = "string")]
    pub format: Option<String>,
    /// Sizes and times in words
    #[arg(short = 'H', long, default_value = "true", action = clap::ArgAction::Set)]
    pub human: bool,
    /// Don't shorten the output
    #[arg(long)]
    pub no_trunc: bool,
    /// Platform of a multi-platform image: os/arch[/variant]
    #[arg(long, value_name = "string")]
    pub platform: Option<String>,
    /// Only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Name or id
    #[arg(value_name = "IMAGE", required = true)]
    pub image: String,
}

/// `image prune`
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// All images that no container uses, not only those without a name
    #[arg(short, long)]
    pub all: bool,
    /// Only those that match: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "filter", value_parser = super::values::filter)]
    pub filter: Vec<(String, String)>,
    /// Don't ask
    #[arg(short, long)]
    pub force: bool,
}

/// `image verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Output as 'json': one object per line, as the engine sends them
    #[arg(long, value_name = "string")]
    pub format: Option<String>,
    /// Only the ids of what is damaged
    #[arg(short, long)]
    pub quiet: bool,
    /// Only these images: names or ids (default: everything that is stored)
    #[arg(value_name = "IMAGE")]
    pub images: Vec<String>,
}

/// `commit`
#[derive(Debug, Args)]
pub struct CommitArgs {
    /// Author to record
    #[arg(short, long, value_name = "string")]
    pub author: Option<String>,
    /// Apply a Dockerfile instruction to the image
    #[arg(short, long, value_name = "list")]
    pub change: Vec<String>,
    /// Message to record
    #[arg(short, long, value_name = "string")]
    pub message: Option<String>,
    /// Let the container run while it is read
    #[arg(long)]
    pub no_pause: bool,
    /// Pause the container while it is read
    #[arg(short, long, default_value = "true", action = clap::ArgAction::Set)]
    pub pause: bool,
    /// Name or id
    #[arg(value_name = "CONTAINER", required = true)]
    pub container: String,
    /// Name of the image
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub reference: Option<String>,
}

/// `export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Write to this file and not to standard output
    #[arg(short, long, value_name = "string")]
    pub output: Option<String>,
    /// Name or id
    #[arg(value_name = "CONTAINER", required = true)]
    pub container: String,
}

/// `diff`
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Name or id
    #[arg(value_name = "CONTAINER", required = true)]
    pub container: String,
}

/// `tag`
#[derive(Debug, Args)]
pub struct TagArgs {
    /// An image
    #[arg(value_name = "SOURCE_IMAGE[:TAG]", required = true)]
    pub source: String,
    /// The name it is to have, too
    #[arg(value_name = "TARGET_IMAGE[:TAG]", required = true)]
    pub target: String,
}

/// `rmi`, `image rm`
#[derive(Debug, Args)]
pub struct RmiArgs {
    /// Remove it also while stopped containers use it
    #[arg(short, long)]
    pub force: bool,
    /// Keep parents without a name
    #[arg(long)]
    pub no_prune: bool,
    /// Only these platforms of the image: os/arch[/variant]
    #[arg(long, value_name = "stringSlice", value_delimiter = ',')]
    pub platform: Vec<String>,
    /// Names or ids
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
}
