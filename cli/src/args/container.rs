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
    /// Start from this checkpoint (experimental in docker, not supported)
    #[arg(long, value_name = "string", hide = true)]
    pub checkpoint: Option<String>,
    /// Folder of checkpoints (experimental in docker, not supported)
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
