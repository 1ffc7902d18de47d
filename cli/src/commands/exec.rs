//! `exec`

use super::App;
use crate::args::container::ExecArgs;
use crate::client::{Call, call::escape};
use crate::config::own_variable;
use crate::exit::{Failure, Outcome};
use crate::options::envs;
use crate::streams::{self, Connect, Ended};
use crate::terminal;
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    id: String,
}

/// Runs `exec`.
pub async fn run(app: &App, args: &ExecArgs) -> Outcome {
    let [container, command @ ..] = &args.words[..] else {
        return Err(Failure::Refused("a container is required".to_owned()));
    };
    let env = envs::environment(&args.env_file, &args.env, own_variable)?;
    let attach_stdin = args.interactive && !args.detach;
    if attach_stdin && args.tty && !terminal::stdin_is_terminal() {
        let text = "the input device is not a TTY";
        return Err(Failure::Refused(text.to_owned()));
    }
    let client = app.client().await?;
    let keys = args.detach_keys.clone().or_else(|| app.config.detach_keys());
    let mut body = json!({
        "User": args.user,
        "Privileged": args.privileged,
        "Tty": args.tty,
        "AttachStdin": attach_stdin,
        "AttachStdout": !args.detach,
        "AttachStderr": !args.detach,
        "DetachKeys": keys.as_deref().unwrap_or_default(),
        "Env": if env.is_empty() { serde_json::Value::Null } else { json!(env) },
        "WorkingDir": args.workdir,
        "Cmd": command,
    });
    let console = match terminal::size() {
        (0, 0) => None,
        (rows, columns) => args.tty.then(|| json!([rows, columns])),
    };
    if let Some(console) = &console {
        body["ConsoleSize"] = console.clone();
    }
    let call = Call::post(format!("/containers/{}/exec", escape(container, false))).json(&body);
    let Created { id } = client.send(call).await?.json().await?;
    let mut start = json!({ "Detach": args.detach, "Tty": args.tty });
    if let Some(console) = console {
        start["ConsoleSize"] = console;
    }
    let call = Call::post(format!("/exec/{id}/start")).json(&start);
    if args.detach {
        client.send(call).await?;
        return Ok(());
    }
    let stream = client.hijack(call).await?;
    let size = (args.tty && terminal::stdout_is_terminal())
        .then(|| streams::follow_size(&client, format!("/exec/{id}/resize")));
    let connect = Connect { tty: args.tty, stdin: attach_stdin, keys };
    if streams::connect(stream, &connect).await? == Ended::Detached {
        return Err(Failure::Refused("read escape sequence".to_owned()));
    }
    drop(size);
    let state = client.send(Call::get(format!("/exec/{id}/json"))).await?.value().await?;
    match state.get("ExitCode").and_then(|code| code.as_i64()) {
        Some(0) => Ok(()),
        Some(code) => Err(Failure::Exit(u8::try_from(code & 0xff).unwrap_or(126))),
        None => Err(Failure::Refused(format!("exec in {container}: the engine gives no exit code"))),
    }
}
