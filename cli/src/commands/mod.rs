//! The commands, one file each.

pub mod archive;
pub mod attach;
pub mod build;
pub mod commit;
pub mod completion;
pub mod context;
pub mod cp;
pub mod create;
pub mod demo;
pub mod df;
pub mod dial;
pub mod diff;
pub mod engine_plugins;
pub mod events;
pub mod exec;
pub mod export;
pub mod history;
pub mod images;
pub mod images_tree;
pub mod import;
pub mod info;
pub mod inspect;
pub mod lifecycle;
pub mod load;
pub mod login;
pub mod logs;
pub mod manifest;
pub mod networks;

pub mod port;
pub mod prune;
pub mod ps;
pub mod pull;
pub mod push;
pub mod rare;
pub mod rmi;
pub mod run;
pub mod save;
pub mod search;
pub mod start;
pub mod stats;
pub mod suggest;
pub mod tag;
pub mod top;
pub mod update;
pub mod verify;
pub mod version;
pub mod volumes;
pub mod wait;

use crate::args::grammar::{self, Line};
use crate::args::{
    BuilderCommand, Cli, Command, ContainerCommand, ImageCommand, ManifestCommand, NetworkCommand, SystemCommand,
    VolumeCommand, gates, help, rare as rare_args,
};
use crate::client::{ApiVersion, Client};
use crate::config::{self, Config};
use crate::exit::{Failure, Outcome};
use crate::output::template::{Context, Template};
use crate::output::{self, json, value::Value};
use crate::plugins::hooks::{self, Ran};
use crate::plugins::{self, Plugin, Plugins};
use clap::CommandFactory;
use std::ffi::OsString;

/// What commands share.
#[derive(Debug)]
pub struct App {
    /// The surroundings.
    pub config: Config,
    /// The command as it was written.
    pub line: Line,
}

impl App {
    /// A client of the engine.
    pub async fn client(&self) -> Outcome<Client> {
        let client = Client::connect(self.config.endpoint()?, self.config.api_version).await?;
        gates::check(&self.line, &client)?;
        Ok(client)
    }
}

/// The help of berth itself, with the plugins that are there.
pub fn overview(words: &[OsString]) -> String {
    let mut root = Cli::command();
    root.build();
    let globals = grammar::globals(words).unwrap_or_default();
    let plugins = Config::load(&globals).map(|config| Plugins::find(&config).all()).unwrap_or_default();
    let builtin = |name: &str| root.find_subcommand(name).is_some();
    let shown = |plugin: Plugin| match plugin.metadata {
        Ok(metadata) if metadata.hidden => None,
        Ok(metadata) => {
            let fault = builtin(&plugin.name).then(|| format!("plugin {:?} duplicates builtin command", plugin.name));
            Some(help::Extra { name: plugin.name, about: metadata.short_description, fault })
        }
        Err(fault) => Some(help::Extra { name: plugin.name, about: String::new(), fault: Some(fault) }),
    };
    let extras: Vec<help::Extra> = plugins.into_iter().filter_map(shown).collect();
    help::overview(&root, &extras, config::variable("DOCKER_HIDE_LEGACY_COMMANDS").is_some())
}

/// Runs a plugin in the place of a command.
pub async fn run_plugin(config: &Config, plugin: &Plugin, words: &[OsString]) -> Outcome {
    let outcome = plugins::run::run(config, plugin, words).await;
    let words = words.iter().map(|word| word.to_string_lossy().into_owned());
    let words: Vec<String> =
        words.skip_while(|word| *word != plugin.name).take_while(|w| !w.starts_with('-')).collect();
    let ran = Ran { command: words.join(" "), error: said(&outcome), ..Ran::default() };
    hooks::after(config, &ran);
    outcome
}

fn said(outcome: &Outcome) -> String {
    outcome.as_ref().err().map(ToString::to_string).unwrap_or_default()
}

/// Runs a command, then the hooks of plugins that wait for it.
pub async fn run(cli: Cli, line: Line) -> Outcome {
    let globals = cli.globals.clone();
    let mut ran = Ran {
        command: line.command.clone(),
        flags: line.flags.clone(),
        words: line.words.clone(),
        error: String::new(),
    };
    let outcome = match dispatch(cli, line).await {
        Err(failure) => match Config::load_quietly(&globals) {
            Some(config) => Err(suggest::improved(&config, failure).await),
            None => Err(failure),
        },
        done => done,
    };
    // Looked up again only on a terminal, where somebody may want hints.
    if crate::terminal::stdout_is_terminal()
        && let Ok(config) = Config::load(&globals)
    {
        ran.error = said(&outcome);
        hooks::after(&config, &ran);
    }
    outcome
}

async fn dispatch(cli: Cli, line: Line) -> Outcome {
    match cli.command {
        Command::Completion(args) => return completion::completion(&args),
        Command::Man(args) => return completion::man(&args),
        Command::DemoGuest(args) => return crate::demo::guest::run(&args.words),
        _ => {}
    }
    let app = App { config: Config::load(&cli.globals)?, line };
    let app = &app;
    use Command as C;
    use ContainerCommand as CC;
    match cli.command {
        C::Run(args) | C::Container(CC::Run(args)) => run::run(app, *args).await,
        C::Create(args) | C::Container(CC::Create(args)) => create::run(app, &args).await,
        C::Exec(args) | C::Container(CC::Exec(args)) => exec::run(app, &args).await,
        C::Ps(args) | C::Container(CC::Ls(args)) => ps::run(app, &args).await,
        C::Start(args) | C::Container(CC::Start(args)) => start::run(app, &args).await,
        C::Attach(args) | C::Container(CC::Attach(args)) => attach::run(app, &args).await,
        C::Stop(args) | C::Container(CC::Stop(args)) => lifecycle::stop(app, &args).await,
        C::Restart(args) | C::Container(CC::Restart(args)) => lifecycle::restart(app, &args).await,
        C::Kill(args) | C::Container(CC::Kill(args)) => lifecycle::kill(app, &args).await,
        C::Rm(args) | C::Container(CC::Rm(args)) => lifecycle::rm(app, &args).await,
        C::Pause(args) | C::Container(CC::Pause(args)) => lifecycle::pause(app, &args.containers).await,
        C::Unpause(args) | C::Container(CC::Unpause(args)) => lifecycle::unpause(app, &args.containers).await,
        C::Rename(args) | C::Container(CC::Rename(args)) => lifecycle::rename(app, &args).await,
        C::Logs(args) | C::Container(CC::Logs(args)) => logs::run(app, &args).await,
        C::Wait(args) | C::Container(CC::Wait(args)) => wait::run(app, &args.containers).await,
        C::Port(args) | C::Container(CC::Port(args)) => port::run(app, &args).await,
        C::Build(args) | C::Image(ImageCommand::Build(args)) | C::Builder(BuilderCommand::Build(args)) => {
            build::run(app, &args).await
        }
        C::Bake(_) => Err(build::no_bake()),
        C::Builder(BuilderCommand::Du(args)) => build::du::run(app, &args).await,
        C::Builder(BuilderCommand::Prune(args)) => prune::builder(app, &args).await,
        C::Cp(args) | C::Container(CC::Cp(args)) => cp::run(app, &args).await,
        C::Top(args) | C::Container(CC::Top(args)) => top::run(app, &args).await,
        C::Stats(args) | C::Container(CC::Stats(args)) => stats::run(app, &args).await,
        C::Update(args) | C::Container(CC::Update(args)) => update::run(app, &args).await,
        C::Container(CC::Prune(args)) => prune::containers(app, &args).await,
        C::System(SystemCommand::Prune(args)) => prune::system(app, &args).await,
        C::System(SystemCommand::DialStdio) => dial::run(app).await,
        C::Volume(VolumeCommand::Create(args)) => volumes::create(app, &args).await,
        C::Volume(VolumeCommand::Export(args)) => volumes::export(app, &args).await,
        C::Volume(VolumeCommand::Import(args)) => volumes::import(app, &args).await,
        C::Volume(VolumeCommand::Inspect(args)) => inspect::volumes(app, &args).await,
        C::Volume(VolumeCommand::Ls(args)) => volumes::ls(app, &args).await,
        C::Volume(VolumeCommand::Prune(args)) => prune::volumes(app, &args).await,
        C::Volume(VolumeCommand::Rm(args)) => volumes::rm(app, &args).await,
        C::Volume(VolumeCommand::Update(args)) => volumes::update(app, &args).await,
        C::Network(NetworkCommand::Connect(args)) => networks::connect(app, &args).await,
        C::Network(NetworkCommand::Create(args)) => networks::create(app, &args).await,
        C::Network(NetworkCommand::Disconnect(args)) => networks::disconnect(app, &args).await,
        C::Network(NetworkCommand::Prune(args)) => prune::networks(app, &args).await,
        C::Network(NetworkCommand::Rm(args)) => networks::rm(app, &args).await,
        C::Checkpoint(rare_args::Checkpoint(call))
        | C::Config(rare_args::Config(call))
        | C::Node(rare_args::Node(call))
        | C::Plugin(rare_args::Plugin(call))
        | C::Secret(rare_args::Secret(call))
        | C::Service(rare_args::Service(call))
        | C::Stack(rare_args::Stack(call))
        | C::Swarm(rare_args::Swarm(call)) => rare::run(app, &call).await,
        C::Inspect(args) => inspect::any(app, &args).await,
        C::Container(CC::Inspect(args)) => inspect::containers(app, &args).await,
        C::Image(ImageCommand::Inspect(args)) => inspect::images(app, &args).await,
        C::Network(NetworkCommand::Inspect(args)) => inspect::networks(app, &args).await,
        C::Network(NetworkCommand::Ls(args)) => networks::run(app, &args).await,
        C::Pull(args) | C::Image(ImageCommand::Pull(args)) => pull::run(app, &args).await,
        C::Images(args) | C::Image(ImageCommand::Ls(args)) => images::run(app, &args).await,
        C::Load(args) | C::Image(ImageCommand::Load(args)) => load::run(app, &args).await,
        C::Import(args) | C::Image(ImageCommand::Import(args)) => import::run(app, &args).await,
        C::Save(args) | C::Image(ImageCommand::Save(args)) => save::run(app, &args).await,
        C::Push(args) | C::Image(ImageCommand::Push(args)) => push::run(app, &args).await,
        C::History(args) | C::Image(ImageCommand::History(args)) => history::run(app, &args).await,
        C::Image(ImageCommand::Prune(args)) => prune::images(app, &args).await,
        C::Image(ImageCommand::Verify(args)) => verify::run(app, &args).await,
        C::Commit(args) | C::Container(CC::Commit(args)) => commit::run(app, &args).await,
        C::Export(args) | C::Container(CC::Export(args)) => export::run(app, &args).await,
        C::Diff(args) | C::Container(CC::Diff(args)) => diff::run(app, &args).await,
        C::Search(args) => search::run(app, &args).await,
        C::Login(args) => login::run(app, &args).await,
        C::Logout(args) => login::logout(app, &args),
        C::Manifest(ManifestCommand::Inspect(args)) => manifest::inspect(app, &args).await,
        C::Manifest(ManifestCommand::Annotate(_)) => Err(manifest::left_out("annotate")),
        C::Manifest(ManifestCommand::Create(_)) => Err(manifest::left_out("create")),
        C::Manifest(ManifestCommand::Push(_)) => Err(manifest::left_out("push")),
        C::Manifest(ManifestCommand::Rm(_)) => Err(manifest::left_out("rm")),
        C::System(SystemCommand::Df(args)) => df::run(app, &args).await,
        C::Context(command) => context::run(app, &command),
        C::Tag(args) | C::Image(ImageCommand::Tag(args)) => tag::run(app, &args).await,
        C::Rmi(args) | C::Image(ImageCommand::Rm(args)) => rmi::run(app, &args).await,
        C::Events(args) | C::System(SystemCommand::Events(args)) => events::run(app, &args).await,
        C::Info(args) | C::System(SystemCommand::Info(args)) => info::run(app, &args).await,
        C::Version(args) => version::run(app, &args).await,
        C::Demo(args) => demo::run(app, &args).await,
        // Answered above: they need neither surroundings nor engine.
        C::Completion(_) | C::Man(_) | C::DemoGuest(_) => Ok(()),
    }
}

/// A flag that needs a newer engine than this one.
pub fn require(client: &Client, flag: &str, given: bool, minor: u16) -> Outcome {
    let needed = ApiVersion { major: 1, minor };
    if !given || client.version() >= needed {
        return Ok(());
    }
    let has = client.version();
    Err(Failure::Refused(format!("{flag:?} requires API version {needed}, but the Docker daemon API version is {has}")))
}

/// A value printed by a template, or as JSON on one line.
pub fn print_formatted(format: &str, value: Value) -> Outcome {
    if format == "json" {
        return output::print_line(&json::line(&value));
    }
    let text = Template::parse(format)?
        .execute(&Context { fields: value, labels: Value::Null })
        .map_err(|error| Failure::Refused(error.to_string()))?;
    output::print_line(&text)
}
