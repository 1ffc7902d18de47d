//! `start`

use super::App;
use super::run::{Attached, start_call};
use crate::args::container::StartArgs;
use crate::client::{Call, call::escape};
use crate::exit::{Failure, Outcome};
use crate::output;

/// Runs `start`.
pub async fn run(app: &App, args: &StartArgs) -> Outcome {
    let (checkpoint, dir) = (args.checkpoint.as_deref(), args.checkpoint_dir.as_deref());
    if checkpoint.is_some() && args.containers.len() > 1 {
        return Err(Failure::Refused("you cannot restore multiple containers at once".to_owned()));
    }
    let client = app.client().await?;
    if !args.attach && !args.interactive {
        let mut failed = Vec::new();
        for name in &args.containers {
            match client.send(start_call(name, checkpoint, dir)).await {
                Ok(_) => output::print_line(name)?,
                Err(error) => {
                    output::note(&error.to_string());
                    failed.push(name.as_str());
                }
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        return Err(Failure::Refused(format!("Error: failed to start containers: {}", failed.join(", "))));
    }
    let [name] = &args.containers[..] else {
        return Err(Failure::Refused("you cannot start and attach multiple containers at once".to_owned()));
    };
    let container = client.send(Call::get(format!("/containers/{}/json", escape(name, false)))).await?.value().await?;
    let config = |field: &str| container.at(&["Config", field]).and_then(|v| v.as_bool()).unwrap_or(false);
    let attached = Attached {
        tty: config("Tty"),
        stdin: args.interactive && config("OpenStdin"),
        stdout: args.attach || args.interactive,
        stderr: args.attach || args.interactive,
        remove: container.at(&["HostConfig", "AutoRemove"]).and_then(|v| v.as_bool()).unwrap_or(false),
        proxy: true,
        keys: args.detach_keys.clone().or_else(|| app.config.detach_keys()),
        checkpoint: (args.checkpoint.clone(), args.checkpoint_dir.clone()),
    };
    match attached.start(&client, container.text(&["Id"]), false).await {
        // `start -a` gives the engine's error as it is: the codes 125 to 127 are those of `run`.
        Err(Failure::Run { cause, .. }) => Err(*cause),
        other => other,
    }
}
