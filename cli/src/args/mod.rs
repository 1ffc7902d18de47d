//! The command line of `berth`, defined once with clap: parsing, help, completions and man pages come from here.
//! The grammar in which flags are written is docker's (pflag) and lives in `grammar`; it hands clap one canonical form.

// Doc comments in here are help texts: brackets mean what they mean in usage lines, not links.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags, rustdoc::bare_urls)]

pub mod container;
pub mod grammar;
pub mod help;
pub mod image;
pub mod run;
pub mod system;
pub mod values;

use clap::{Args, Parser, Subcommand};

/// The whole command line, parsed.
#[derive(Debug, Parser)]
#[command(
    name = "berth",
    about = "Runs containers: docker's command line for the Berth engine",
    disable_help_subcommand = true
)]
#[command(disable_help_flag = true, disable_version_flag = true)]
pub struct Cli {
    /// Flags that stand before the command.
    #[command(flatten)]
    pub globals: Globals,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that stand before the command.
#[derive(Debug, Args)]
pub struct Globals {
    /// Folder of the client's config.json (default: DOCKER_CONFIG, then ~/.docker)
    #[arg(long, value_name = "string")]
    pub config: Option<String>,
    /// Name of a docker context (not supported yet: use --host)
    #[arg(short, long, value_name = "string")]
    pub context: Option<String>,
    /// Accepted for docker's sake, changes nothing
    #[arg(short = 'D', long)]
    pub debug: bool,
    /// Engine to connect to: unix:///PATH or tcp://HOST:PORT (default: BERTH_HOST, then DOCKER_HOST)
    #[arg(short = 'H', long, value_name = "list")]
    pub host: Vec<String>,
    /// Accepted for docker's sake, changes nothing
    #[arg(short, long, value_name = "string")]
    pub log_level: Option<String>,
    /// Use TLS (not supported yet)
    #[arg(long)]
    pub tls: bool,
    /// Trust certificates signed by this CA only (not supported yet)
    #[arg(long, value_name = "string")]
    pub tlscacert: Option<String>,
    /// TLS certificate file (not supported yet)
    #[arg(long, value_name = "string")]
    pub tlscert: Option<String>,
    /// TLS key file (not supported yet)
    #[arg(long, value_name = "string")]
    pub tlskey: Option<String>,
    /// Use TLS and verify the engine (not supported yet)
    #[arg(long)]
    pub tlsverify: bool,
}

/// The commands at the top level.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create and run a new container from an image
    Run(Box<run::RunArgs>),
    /// Create a new container
    Create(Box<run::CreateArgs>),
    /// Run a command in a running container
    Exec(container::ExecArgs),
    /// List containers
    Ps(container::PsArgs),
    /// Download an image from a registry
    Pull(image::PullArgs),
    /// List images
    Images(image::ImagesArgs),
    /// Start one or more stopped containers
    Start(container::StartArgs),
    /// Connect the terminal's standard streams to a running container
    Attach(container::AttachArgs),
    /// Stop one or more running containers
    Stop(container::StopArgs),
    /// Restart one or more containers
    Restart(container::StopArgs),
    /// Kill one or more running containers
    Kill(container::KillArgs),
    /// Remove one or more containers
    Rm(container::RmArgs),
    /// Pause all processes within one or more containers
    Pause(container::Names),
    /// Resume all processes within one or more containers
    Unpause(container::Names),
    /// Give a container another name
    Rename(container::RenameArgs),
    /// Print what a container has written
    Logs(container::LogsArgs),
    /// Wait until containers stop, then print their exit codes
    Wait(container::Names),
    /// List the port mappings of a container, or one of them
    Port(container::PortArgs),
    /// Print everything the engine knows about an object
    Inspect(system::InspectArgs),
    /// Load images from a tar archive or standard input
    Load(image::LoadArgs),
    /// Make an image from a tarball of a root filesystem
    Import(image::ImportArgs),
    /// Give an image another name
    Tag(image::TagArgs),
    /// Remove one or more images
    Rmi(image::RmiArgs),
    /// Print what happens in the engine, as it happens
    Events(system::EventsArgs),
    /// Print facts about the engine
    Info(system::FormatArgs),
    /// Print the versions of client and engine
    Version(system::FormatArgs),
    /// Run a small container that is built into berth
    Demo(system::DemoArgs),
    /// Manage containers
    #[command(subcommand)]
    Container(ContainerCommand),
    /// Manage images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Manage networks
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Manage the engine
    #[command(subcommand)]
    System(SystemCommand),
    /// Print a completion script for a shell
    Completion(system::CompletionArgs),
    /// Write man pages into a folder
    #[command(hide = true)]
    Man(system::ManArgs),
    /// What the demo container runs
    #[command(hide = true)]
    DemoGuest(system::DemoGuestArgs),
}

/// `berth container ...`
#[derive(Debug, Subcommand)]
pub enum ContainerCommand {
    /// Connect the terminal's standard streams to a running container
    Attach(container::AttachArgs),
    /// Create a new container
    Create(Box<run::CreateArgs>),
    /// Run a command in a running container
    Exec(container::ExecArgs),
    /// Print everything the engine knows about containers
    Inspect(container::InspectArgs),
    /// Kill one or more running containers
    Kill(container::KillArgs),
    /// Print what a container has written
    Logs(container::LogsArgs),
    /// List containers
    #[command(visible_aliases = ["list", "ps"])]
    Ls(container::PsArgs),
    /// Pause all processes within one or more containers
    Pause(container::Names),
    /// List the port mappings of a container, or one of them
    Port(container::PortArgs),
    /// Give a container another name
    Rename(container::RenameArgs),
    /// Restart one or more containers
    Restart(container::StopArgs),
    /// Remove one or more containers
    #[command(visible_alias = "remove")]
    Rm(container::RmArgs),
    /// Create and run a new container from an image
    Run(Box<run::RunArgs>),
    /// Start one or more stopped containers
    Start(container::StartArgs),
    /// Stop one or more running containers
    Stop(container::StopArgs),
    /// Resume all processes within one or more containers
    Unpause(container::Names),
    /// Wait until containers stop, then print their exit codes
    Wait(container::Names),
}

/// `berth image ...`
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Make an image from a tarball of a root filesystem
    Import(image::ImportArgs),
    /// Print everything the engine knows about images
    Inspect(image::InspectArgs),
    /// Load images from a tar archive or standard input
    Load(image::LoadArgs),
    /// List images
    #[command(visible_alias = "list")]
    Ls(image::ImagesArgs),
    /// Download an image from a registry
    Pull(image::PullArgs),
    /// Remove one or more images
    #[command(visible_alias = "remove")]
    Rm(image::RmiArgs),
    /// Give an image another name
    Tag(image::TagArgs),
}

/// `berth network ...`
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Print everything the engine knows about networks
    Inspect(system::NetworkInspectArgs),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(system::NetworkLsArgs),
}

/// `berth system ...`
#[derive(Debug, Subcommand)]
pub enum SystemCommand {
    /// Print what happens in the engine, as it happens
    Events(system::EventsArgs),
    /// Print facts about the engine
    Info(system::FormatArgs),
}

/// Commands docker has and berth has not yet, so that the answer to them is clear.
pub const NOT_YET: &[&str] = &[
    "bake",
    "build",
    "builder",
    "buildx",
    "checkpoint",
    "commit",
    "compose",
    "config",
    "context",
    "cp",
    "diff",
    "export",
    "history",
    "login",
    "logout",
    "manifest",
    "node",
    "plugin",
    "push",
    "save",
    "search",
    "secret",
    "service",
    "stack",
    "stats",
    "swarm",
    "top",
    "trust",
    "update",
    "volume",
    "container commit",
    "container cp",
    "container diff",
    "container export",
    "container prune",
    "container stats",
    "container top",
    "container update",
    "image build",
    "image history",
    "image prune",
    "image push",
    "image save",
    "network connect",
    "network create",
    "network disconnect",
    "network prune",
    "network rm",
    "system df",
    "system dial-stdio",
    "system prune",
];
