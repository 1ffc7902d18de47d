//! `attach`

use super::{App, run::exit_code};
use crate::args::container::AttachArgs;
use crate::client::{Call, call::escape};
use crate::exit::{Failure, Outcome};
use crate::streams::{self, Connect, Ended};
use crate::terminal;

/// Runs `attach`.
pub async fn run(app: &App, args: &AttachArgs) -> Outcome {
    let client = app.client().await?;
    let name = escape(&args.container, false);
    let container = client.send(Call::get(format!("/containers/{name}/json"))).await?.value().await?;
    let state = |field: &str| container.at(&["State", field]).and_then(|v| v.as_bool()).unwrap_or(false);
    let refusal = match () {
        () if !state("Running") => Some("You cannot attach to a stopped container, start it first"),
        () if state("Paused") => Some("You cannot attach to a paused container, unpause it first"),
        () if state("Restarting") => Some("You cannot attach to a restarting container, wait until it is running"),
        () => None,
    };
    if let Some(text) = refusal {
        return Err(Failure::Refused(text.to_owned()));
    }
    let config = |field: &str| container.at(&["Config", field]).and_then(|v| v.as_bool()).unwrap_or(false);
    let (tty, stdin) = (config("Tty"), !args.no_stdin && config("OpenStdin"));
    if tty && stdin && !terminal::stdin_is_terminal() {
        let text = "the input device is not a TTY";
        return Err(Failure::Refused(text.to_owned()));
    }
    let id = container.text(&["Id"]);
    // Asked before the streams are attached, so that the code is known even if the container is gone right after.
    let wait = client.send(Call::post(format!("/containers/{id}/wait"))).await?;
    let keys = args.detach_keys.clone().or_else(|| app.config.detach_keys());
    let proxy = (args.sig_proxy && !tty).then(|| streams::proxy_signals(&client, id));
    let call = Call::post(format!("/containers/{id}/attach"))
        .maybe("detachKeys", keys.as_deref())
        .query("stderr", "1")
        .switch("stdin", stdin)
        .query("stdout", "1")
        .query("stream", "1")
        .header("content-type", "text/plain");
    let stream = client.hijack(call).await?;
    let size = (tty && terminal::stdout_is_terminal())
        .then(|| streams::follow_size(&client, format!("/containers/{id}/resize")));
    if streams::connect(stream, &Connect { tty, stdin, keys }).await? == Ended::Detached {
        return Err(Failure::Refused("read escape sequence".to_owned()));
    }
    let code = exit_code(wait).await?;
    drop((proxy, size));
    if code == 0 { Ok(()) } else { Err(Failure::Exit(code)) }
}
