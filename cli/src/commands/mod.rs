//! The commands, one file each.

pub mod attach;
pub mod completion;
pub mod create;
pub mod demo;
pub mod events;
pub mod exec;
pub mod images;
pub mod import;
pub mod info;
pub mod inspect;
pub mod lifecycle;
pub mod load;
pub mod logs;
pub mod networks;
pub mod port;
pub mod ps;
pub mod pull;
pub mod rmi;
pub mod run;
pub mod start;
pub mod tag;
pub mod version;
pub mod wait;

use crate::args::{Cli, Command, ContainerCommand, ImageCommand, NetworkCommand, SystemCommand};
use crate::client::{ApiVersion, Client};
use crate::config::Config;
use crate::exit::{Failure, Outcome};
use crate::output::template::{Context, Template};
use crate::output::{self, json, value::Value};

/// What commands share.
#[derive(Debug)]
pub struct App {
    /// The surroundings.
    pub config: Config,
}

impl App {
    /// A client of the engine.
    pub async fn client(&self) -> Outcome<Client> {
        Ok(Client::connect(self.config.host.clone(), self.config.api_version).await?)
    }
}

/// Runs a command.
pub async fn run(cli: Cli) -> Outcome {
    match cli.command {
        Command::Completion(args) => return completion::completion(&args),
        Command::Man(args) => return completion::man(&args),
        Command::DemoGuest(args) => return crate::demo::guest::run(&args.words),
        _ => {}
    }
    let app = App { config: Config::load(&cli.globals)? };
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
        C::Inspect(args) => inspect::any(app, &args).await,
        C::Container(CC::Inspect(args)) => inspect::containers(app, &args).await,
        C::Image(ImageCommand::Inspect(args)) => inspect::images(app, &args).await,
        C::Network(NetworkCommand::Inspect(args)) => inspect::networks(app, &args).await,
        C::Network(NetworkCommand::Ls(args)) => networks::run(app, &args).await,
        C::Pull(args) | C::Image(ImageCommand::Pull(args)) => pull::run(app, &args).await,
        C::Images(args) | C::Image(ImageCommand::Ls(args)) => images::run(app, &args).await,
        C::Load(args) | C::Image(ImageCommand::Load(args)) => load::run(app, &args).await,
        C::Import(args) | C::Image(ImageCommand::Import(args)) => import::run(app, &args).await,
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
    Err(Failure::Refused(format!("{flag:?} requires API version {needed}, but the Berth engine API version is {has}")))
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
