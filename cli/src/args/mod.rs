//! The command line of `berth`, defined once with clap: parsing, help, completions and man pages come from here.
//! The grammar in which flags are written is docker's (pflag) and lives in `grammar`; it hands clap one canonical form.

// Doc comments in here are help texts: brackets mean what they mean in usage lines, not links.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags, rustdoc::bare_urls)]

pub mod build;
pub mod container;
pub mod context;
#[cfg(test)]
mod coverage;
pub mod gates;
pub mod grammar;
pub mod help;
pub mod image;
pub mod network;
pub mod rare;
pub mod registry;
pub mod run;
pub mod system;
pub mod values;
pub mod volume;

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
#[derive(Debug, Clone, Default, Args)]
pub struct Globals {
    /// Location of client config files (default: DOCKER_CONFIG, then ~/.docker)
    #[arg(long, value_name = "string")]
    pub config: Option<String>,
    /// Name of the context to use to connect to the daemon (overrides DOCKER_HOST env var and default context set with "berth context use")
    #[arg(short, long, value_name = "string")]
    pub context: Option<String>,
    /// Enable debug mode
    #[arg(short = 'D', long)]
    pub debug: bool,
    /// Daemon socket to connect to (default: BERTH_HOST, then DOCKER_HOST)
    #[arg(short = 'H', long, value_name = "list")]
    pub host: Vec<String>,
    /// Set the logging level ("debug", "info", "warn", "error", "fatal") (default "info")
    #[arg(short, long, value_name = "string")]
    pub log_level: Option<String>,
    /// Use TLS; implied by --tlsverify
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub tls: Option<bool>,
    /// Trust certs signed only by this CA (default: ca.pem in DOCKER_CERT_PATH, then in the config folder)
    #[arg(long, value_name = "string")]
    pub tlscacert: Option<String>,
    /// Path to TLS certificate file (default: cert.pem beside it)
    #[arg(long, value_name = "string")]
    pub tlscert: Option<String>,
    /// Path to TLS key file (default: key.pem beside it)
    #[arg(long, value_name = "string")]
    pub tlskey: Option<String>,
    /// Use TLS and verify the remote
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub tlsverify: Option<bool>,
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
    /// Build an image from a Dockerfile
    Build(Box<build::BuildArgs>),
    /// Build images by a file that describes several of them
    Bake(system::WordsArgs),
    /// Copy files between a container and this machine
    Cp(container::CpArgs),
    /// Print the processes of a container
    Top(container::TopArgs),
    /// Print how much containers use of processors, memory, networks and disks
    Stats(container::StatsArgs),
    /// Change limits and restart policies of containers
    Update(container::UpdateArgs),
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
    /// Write images into a tar archive or to standard output
    Save(image::SaveArgs),
    /// Upload an image to a registry
    Push(image::PushArgs),
    /// Print the layers of an image and how they came about
    History(image::HistoryArgs),
    /// Make an image from what a container has changed
    Commit(image::CommitArgs),
    /// Write the files of a container as a tar archive
    Export(image::ExportArgs),
    /// Print what a container has changed in its files
    Diff(image::DiffArgs),
    /// Give an image another name
    Tag(image::TagArgs),
    /// Remove one or more images
    Rmi(image::RmiArgs),
    /// Look for images in a registry's index
    Search(registry::SearchArgs),
    /// Try credentials at a registry, and keep them
    Login(registry::LoginArgs),
    /// Forget the credentials of a registry
    Logout(registry::LogoutArgs),
    /// Print what happens in the engine, as it happens
    Events(system::EventsArgs),
    /// Print facts about the engine
    Info(system::FormatArgs),
    /// Print the versions of client and engine
    Version(system::FormatArgs),
    /// Run a small container that is built into berth
    Demo(system::DemoArgs),
    /// Manage builds
    #[command(subcommand)]
    Builder(BuilderCommand),
    /// Manage checkpoints
    #[command(subcommand)]
    Checkpoint(rare::Checkpoint),
    /// Manage configs of a swarm
    #[command(subcommand)]
    Config(rare::Config),
    /// Manage containers
    #[command(subcommand)]
    Container(ContainerCommand),
    /// Manage contexts
    #[command(subcommand)]
    Context(context::ContextCommand),
    /// Manage images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Manage manifests and lists of manifests
    #[command(subcommand)]
    Manifest(ManifestCommand),
    /// Manage networks
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Manage nodes of a swarm
    #[command(subcommand)]
    Node(rare::Node),
    /// Manage plugins of the engine
    #[command(subcommand)]
    Plugin(rare::Plugin),
    /// Manage secrets of a swarm
    #[command(subcommand)]
    Secret(rare::Secret),
    /// Manage services of a swarm
    #[command(subcommand)]
    Service(rare::Service),
    /// Manage stacks of a swarm
    #[command(subcommand)]
    Stack(rare::Stack),
    /// Manage swarms
    #[command(subcommand)]
    Swarm(rare::Swarm),
    /// Manage the engine
    #[command(subcommand)]
    System(SystemCommand),
    /// Manage volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
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
    /// Make an image from what a container has changed
    Commit(image::CommitArgs),
    /// Copy files between a container and this machine
    Cp(container::CpArgs),
    /// Create a new container
    Create(Box<run::CreateArgs>),
    /// Print what a container has changed in its files
    Diff(image::DiffArgs),
    /// Run a command in a running container
    Exec(container::ExecArgs),
    /// Write the files of a container as a tar archive
    Export(image::ExportArgs),
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
    /// Remove all containers that don't run
    Prune(build::PruneArgs),
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
    /// Print how much containers use of processors, memory, networks and disks
    Stats(container::StatsArgs),
    /// Stop one or more running containers
    Stop(container::StopArgs),
    /// Print the processes of a container
    Top(container::TopArgs),
    /// Resume all processes within one or more containers
    Unpause(container::Names),
    /// Change limits and restart policies of containers
    Update(container::UpdateArgs),
    /// Wait until containers stop, then print their exit codes
    Wait(container::Names),
}

/// `berth builder ...`
#[derive(Debug, Subcommand)]
pub enum BuilderCommand {
    /// Build an image from a Dockerfile
    Build(Box<build::BuildArgs>),
    /// Print what earlier builds have left for later ones
    Du(build::BuilderDuArgs),
    /// Remove what earlier builds have left for later ones
    Prune(build::BuilderPruneArgs),
}

/// `berth volume ...`
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume
    Create(Box<volume::CreateArgs>),
    /// Write a volume's content to a tar archive (Berth's own)
    Export(volume::ExportArgs),
    /// Unpack a tar archive into a volume (Berth's own)
    Import(volume::ImportArgs),
    /// Print everything the engine knows about volumes
    Inspect(volume::InspectArgs),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(volume::LsArgs),
    /// Remove volumes that nothing uses
    Prune(volume::PruneArgs),
    /// Remove one or more volumes
    #[command(visible_alias = "remove")]
    Rm(volume::RmArgs),
    /// Change a cluster volume
    Update(volume::UpdateArgs),
}

/// `berth image ...`
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Build an image from a Dockerfile
    Build(Box<build::BuildArgs>),
    /// Print the layers of an image and how they came about
    History(image::HistoryArgs),
    /// Make an image from a tarball of a root filesystem
    Import(image::ImportArgs),
    /// Print everything the engine knows about images
    Inspect(image::InspectArgs),
    /// Load images from a tar archive or standard input
    Load(image::LoadArgs),
    /// List images
    #[command(visible_alias = "list")]
    Ls(image::ImagesArgs),
    /// Remove images that nothing uses
    Prune(image::PruneArgs),
    /// Download an image from a registry
    Pull(image::PullArgs),
    /// Upload an image to a registry
    Push(image::PushArgs),
    /// Remove one or more images
    #[command(visible_alias = "remove")]
    Rm(image::RmiArgs),
    /// Write images into a tar archive or to standard output
    Save(image::SaveArgs),
    /// Give an image another name
    Tag(image::TagArgs),
    /// Read everything that is stored of all images, and tell what is damaged
    Verify(image::VerifyArgs),
}

/// `berth manifest ...`
#[derive(Debug, Subcommand)]
pub enum ManifestCommand {
    /// Change what a local manifest list says about a manifest
    Annotate(registry::ManifestAnnotateArgs),
    /// Make a local manifest list
    Create(registry::ManifestCreateArgs),
    /// Print a manifest, or a list of manifests, from a registry
    Inspect(registry::ManifestInspectArgs),
    /// Upload a manifest list to a registry
    Push(registry::ManifestPushArgs),
    /// Remove local manifest lists
    Rm(registry::ManifestRmArgs),
}

/// `berth network ...`
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Connect a container to a network
    Connect(network::ConnectArgs),
    /// Make a network
    Create(network::CreateArgs),
    /// Disconnect a container from a network
    Disconnect(network::DisconnectArgs),
    /// Print everything the engine knows about networks
    Inspect(system::NetworkInspectArgs),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(system::NetworkLsArgs),
    /// Remove networks that nothing uses
    Prune(build::PruneArgs),
    /// Remove one or more networks
    #[command(visible_alias = "remove")]
    Rm(network::RmArgs),
}

/// `berth system ...`
#[derive(Debug, Subcommand)]
pub enum SystemCommand {
    /// Print how much of the disk is used, and for what
    Df(system::DfArgs),
    /// Connect standard input and output with the engine
    #[command(hide = true)]
    DialStdio,
    /// Print what happens in the engine, as it happens
    Events(system::EventsArgs),
    /// Print facts about the engine
    Info(system::FormatArgs),
    /// Remove everything that nothing uses
    Prune(build::SystemPruneArgs),
}

/// Commands docker has and berth has not yet, so that the answer to them is clear.
pub const NOT_YET: &[&str] = &["trust"];
