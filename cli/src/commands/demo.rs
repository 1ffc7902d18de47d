//! `demo`: runs a container of the image that is built into berth.

use super::{App, create, load::streamed, run::Attached};
use crate::args::{Command, grammar, run::RunArgs, system::DemoArgs};
use crate::client::{Call, Client};
use crate::demo::image;
use crate::exit::{Failure, Outcome};
use crate::output::progress;
use std::ffi::OsString;

/// Runs `demo`.
pub async fn run(app: &App, args: &DemoArgs) -> Outcome {
    let client = app.client().await.map_err(Failure::in_run)?;
    load(&client).await.map_err(Failure::in_run)?;
    let run = run_args(args)?;
    let wanted = create::prepare(app, &client, &run.container, run.detach)?;
    let id = create::create(app, &client, &run.container, &wanted).await.map_err(Failure::in_run)?;
    let attached = Attached {
        tty: false,
        stdin: wanted.stdin,
        stdout: wanted.stdout,
        stderr: wanted.stderr,
        remove: true,
        proxy: true,
        keys: None,
        checkpoint: (None, None),
    };
    attached.start(&client, &id, run.detach).await
}

/// Loads the image unless the engine has it, of this very build.
async fn load(client: &Client) -> Outcome {
    let fault = |cause| Failure::io("read /proc/self/exe", cause);
    let build = image::Build::running().map_err(fault)?;
    match client.send(Call::get(format!("/images/{}/json", image::NAME))).await {
        Ok(reply) => {
            let known = reply.value().await?;
            if known.text(&["Config", "Labels", image::LABEL]) == build.name {
                return Ok(());
            }
        }
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error.into()),
    }
    let program = tokio::fs::read("/proc/self/exe").await.map_err(fault)?;
    let body = streamed(std::io::Cursor::new(image::archive(&program, &build)));
    let call = Call::post("/images/load").query("quiet", "1").header("content-type", "application/x-tar").body(body);
    progress::drain(client.send(call).await?).await
}

/// The same as `run --rm ... berth/demo:latest WORDS`.
fn run_args(args: &DemoArgs) -> Outcome<RunArgs> {
    let mut words = vec!["run".to_owned(), "--rm".to_owned(), "--pull=never".to_owned()];
    if args.detach {
        words.push("--detach".to_owned());
    }
    if args.words.first().is_some_and(|word| word == "cat") {
        words.push("--interactive".to_owned());
    }
    words.extend(args.name.iter().map(|name| format!("--name={name}")));
    words.extend(args.network.iter().map(|network| format!("--network={network}")));
    words.push(format!("--memory={}", args.memory));
    words.extend(args.publish.iter().map(|port| format!("--publish={port}")));
    words.push(image::NAME.to_owned());
    words.extend(args.words.iter().cloned());
    match grammar::parse(words.into_iter().map(OsString::from)) {
        Ok(grammar::Parsed::Command(cli, _)) => match cli.command {
            Command::Run(run) => Ok(*run),
            _ => Err(Failure::Refused("demo: not a run".to_owned())),
        },
        Ok(_) => Err(Failure::Refused("demo: not a run".to_owned())),
        Err(error) => Err(Failure::Refused(error.to_string())),
    }
}
