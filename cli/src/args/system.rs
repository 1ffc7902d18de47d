//! Arguments of the commands on the engine, on networks, and of berth's own commands.

use clap::Args;

/// `version`, `info`
#[derive(Debug, Args)]
pub struct FormatArgs {
    /// Output as 'json' or a Go template
    #[arg(short, long, value_name = "string")]
    pub format: Option<String>,
}

/// `system df`
#[derive(Debug, Args)]
pub struct DfArgs {
    /// Output as 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(long, value_name = "string")]
    pub format: Option<String>,
    /// One line per object
    #[arg(short, long)]
    pub verbose: bool,
}

/// `inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Output as 'json' or a Go template
    #[arg(short, long, value_name = "string")]
    pub format: Option<String>,
    /// Sizes of the files of a container, too
    #[arg(short, long)]
    pub size: bool,
    /// Look only among objects of this type: container, image, network, volume, ...
    #[arg(long, value_name = "string")]
    pub r#type: Option<String>,
    /// Names or ids
    #[arg(value_name = "NAME|ID", required = true)]
    pub names: Vec<String>,
}

/// `events`
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Only those that match: key=value
    #[arg(short, long, value_name = "filter", value_parser = super::values::filter)]
    pub filter: Vec<(String, String)>,
    /// Output as 'json' or a Go template
    #[arg(long, value_name = "string")]
    pub format: Option<String>,
    /// Begin with what happened since: a time or a duration ago
    #[arg(long, value_name = "string")]
    pub since: Option<String>,
    /// End at this time
    #[arg(long, value_name = "string")]
    pub until: Option<String>,
}

/// `network ls`
#[derive(Debug, Args)]
pub struct NetworkLsArgs {
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
}

/// `network inspect`
#[derive(Debug, Args)]
pub struct NetworkInspectArgs {
    /// Output as 'json' or a Go template
    #[arg(short, long, value_name = "string")]
    pub format: Option<String>,
    /// More detail
    #[arg(short, long)]
    pub verbose: bool,
    /// Names or ids
    #[arg(value_name = "NETWORK", required = true)]
    pub networks: Vec<String>,
}

/// `demo`
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Leave the container in the background and print its id
    #[arg(short, long)]
    pub detach: bool,
    /// Name of the container
    #[arg(long, value_name = "string")]
    pub name: Option<String>,
    /// Memory limit
    #[arg(short, long, value_name = "bytes", default_value = "64m")]
    pub memory: String,
    /// Network of the container
    #[arg(long, alias = "net", value_name = "network")]
    pub network: Option<String>,
    /// Publish a port, for `serve`
    #[arg(short, long, value_name = "list")]
    pub publish: Vec<String>,
    /// What it does: words (default), serve [PORT], count N MILLISECONDS, sleep [SECONDS], exit [CODE], cat
    #[arg(value_name = "[ACTION] [ARG...]", trailing_var_arg = true, num_args = 0..)]
    pub words: Vec<String>,
}

/// `demo-guest`
#[derive(Debug, Args)]
pub struct DemoGuestArgs {
    /// Action and arguments
    #[arg(value_name = "[ACTION] [ARG...]", trailing_var_arg = true, num_args = 0..)]
    pub words: Vec<String>,
}

/// `completion`
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// bash, zsh, fish, elvish or powershell
    #[arg(value_name = "SHELL", required = true)]
    pub shell: clap_complete::Shell,
}

/// `man`
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Folder for the pages
    #[arg(value_name = "DIR", required = true)]
    pub dir: std::path::PathBuf,
}

/// Words for a plugin, which knows what they mean.
#[derive(Debug, Args)]
pub struct WordsArgs {
    /// The words
    #[arg(value_name = "[OPTIONS] [TARGET...]", trailing_var_arg = true, allow_hyphen_values = true, num_args = 0..)]
    pub words: Vec<String>,
}
