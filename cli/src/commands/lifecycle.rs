//! `stop`, `kill`, `rm`, `restart`, `pause`, `unpause`, `rename`: one call per container.

use super::App;
use crate::args::container::{KillArgs, RenameArgs, RmArgs, StopArgs};
use crate::client::{Call, Client, ClientError, call::escape};
use crate::exit::{Failure, Outcome};
use crate::output;
use futures_util::stream::{self, StreamExt};

/// How many containers are worked on at once.
const AT_ONCE: usize = 50;

/// Runs `stop`.
pub async fn stop(app: &App, args: &StopArgs) -> Outcome {
    each(&app.client().await?, &args.containers, |name| stop_call(name, "stop", args)).await
}

/// Runs `restart`, one after the other.
pub async fn restart(app: &App, args: &StopArgs) -> Outcome {
    let client = app.client().await?;
    let mut errors = Vec::new();
    for name in &args.containers {
        match client.send(stop_call(name, "restart", args)).await {
            Ok(_) => output::print_line(name)?,
            Err(error) => errors.push(error.to_string()),
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Failure::Several(errors)) }
}

fn stop_call(name: &str, verb: &str, args: &StopArgs) -> Call {
    Call::post(path(name, verb))
        .maybe("signal", args.signal.as_deref())
        .maybe("t", args.timeout.map(|seconds| seconds.to_string()))
}

/// Runs `kill`.
pub async fn kill(app: &App, args: &KillArgs) -> Outcome {
    let signal = args.signal.as_deref().unwrap_or("KILL");
    each(&app.client().await?, &args.containers, |name| Call::post(path(name, "kill")).query("signal", signal)).await
}

/// Runs `pause`.
pub async fn pause(app: &App, names: &[String]) -> Outcome {
    each(&app.client().await?, names, |name| Call::post(path(name, "pause"))).await
}

/// Runs `unpause`.
pub async fn unpause(app: &App, names: &[String]) -> Outcome {
    each(&app.client().await?, names, |name| Call::post(path(name, "unpause"))).await
}

/// Runs `rm`. By force, a container that does not exist is as good as removed: worth a note only.
pub async fn rm(app: &App, args: &RmArgs) -> Outcome {
    let client = app.client().await?;
    let call = |name: &str| {
        Call::delete(format!("/containers/{}", escape(name.trim_matches('/'), false)))
            .switch("force", args.force)
            .switch("link", args.link)
            .switch("v", args.volumes)
    };
    if let Some(empty) = args.containers.iter().find(|name| name.trim_matches('/').is_empty()) {
        return Err(Failure::Refused(format!("container name cannot be empty: {empty:?}")));
    }
    let results = send_all(&client, &args.containers, call).await;
    report(results, |error| args.force && error.is_not_found())
}

/// Runs `rename`.
pub async fn rename(app: &App, args: &RenameArgs) -> Outcome {
    let (old, new) = (args.container.trim(), args.new_name.trim());
    if old.is_empty() || new.is_empty() {
        return Err(Failure::Refused("Error: Neither old nor new names may be empty".to_owned()));
    }
    match app.client().await?.send(Call::post(path(old, "rename")).query("name", new)).await {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(Failure::Several(vec![error.to_string(), format!("Error: failed to rename container named {old}")]))
        }
    }
}

fn path(name: &str, verb: &str) -> String {
    format!("/containers/{}/{verb}", escape(name, false))
}

/// Sends a call for every container at once, and prints in the order of the arguments.
async fn each(client: &Client, names: &[String], call: impl Fn(&str) -> Call) -> Outcome {
    report(send_all(client, names, call).await, |_| false)
}

async fn send_all<'n>(
    client: &Client,
    names: &'n [String],
    call: impl Fn(&str) -> Call,
) -> Vec<(&'n str, Result<(), ClientError>)> {
    let requests = names.iter().map(|name| {
        let call = call(name);
        async move { (name.as_str(), client.send(call).await.map(drop)) }
    });
    stream::iter(requests.collect::<Vec<_>>()).buffered(AT_ONCE).collect().await
}

/// Prints the names that went well; a `minor` error is worth a note only.
fn report(results: Vec<(&str, Result<(), ClientError>)>, minor: impl Fn(&ClientError) -> bool) -> Outcome {
    let mut errors = Vec::new();
    for (name, result) in results {
        match result {
            Ok(()) => output::print_line(name)?,
            Err(error) if minor(&error) => output::note(&error.to_string()),
            Err(error) => errors.push(error.to_string()),
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Failure::Several(errors)) }
}
