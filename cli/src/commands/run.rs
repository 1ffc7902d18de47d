//! `run`: create, attach, start, wait; the container's exit code becomes ours.

use super::{App, create};
use crate::args::run::RunArgs;
use crate::client::{Call, Client, Reply, call::escape};
use crate::exit::{Failure, Outcome};
use crate::output;
use crate::streams::{self, Connect, Ended};
use crate::terminal;
use serde::Deserialize;

/// Runs `run`.
pub async fn run(app: &App, args: RunArgs) -> Outcome {
    let flags = &args.container;
    if args.detach && !flags.process.attach.is_empty() {
        let text = "conflicting options: cannot specify both --attach and --detach";
        return Err(Failure::Refused(text.to_owned()));
    }
    let client = app.client().await.map_err(Failure::in_run)?;
    let wanted = create::prepare(app, &client, flags, args.detach)?;
    if flags.process.tty && wanted.stdin && !terminal::stdin_is_terminal() {
        let text = "the input device is not a TTY";
        return Err(Failure::Refused(text.to_owned()));
    }
    let id = create::create(app, &client, flags, &wanted).await.map_err(Failure::in_run)?;
    let keys = args.detach_keys.or_else(|| app.config.detach_keys());
    let attached = Attached {
        tty: flags.process.tty,
        stdin: wanted.stdin,
        stdout: wanted.stdout,
        stderr: wanted.stderr,
        remove: flags.process.rm,
        proxy: args.sig_proxy,
        keys,
        checkpoint: (None, None),
    };
    attached.start(&client, &id, args.detach).await
}

/// A container about to be started with the client's streams attached.
#[derive(Debug)]
pub struct Attached {
    /// It has a terminal.
    pub tty: bool,
    /// Standard input is attached.
    pub stdin: bool,
    /// Standard output is attached.
    pub stdout: bool,
    /// Standard error is attached.
    pub stderr: bool,
    /// The engine removes it when it exits.
    pub remove: bool,
    /// Signals are passed on.
    pub proxy: bool,
    /// Keys that leave it.
    pub keys: Option<String>,
    /// Checkpoint it is started from, and the folder of that.
    pub checkpoint: (Option<String>, Option<String>),
}

impl Attached {
    /// Attaches, then starts, so that not even the first byte is lost; the end of the container is the result.
    pub async fn start(self, client: &Client, id: &str, detached: bool) -> Outcome {
        let (checkpoint, dir) = &self.checkpoint;
        let start = || start_call(id, checkpoint.as_deref(), dir.as_deref());
        if detached {
            client.send(start()).await.map_err(|error| Failure::from(error).in_run())?;
            return output::print_line(id);
        }
        let proxy = (self.proxy && !self.tty).then(|| streams::proxy_signals(client, id));
        let any = self.stdin || self.stdout || self.stderr;
        let stream = match any {
            true => Some(client.hijack(self.call(id)).await.map_err(|error| Failure::from(error).in_run())?),
            false => None,
        };
        let condition = if self.remove { "removed" } else { "next-exit" };
        // The header of the answer is there before the start: no exit can be missed.
        let wait = client.send(Call::post(format!("/containers/{id}/wait")).query("condition", condition)).await;
        let wait = wait.map_err(|error| Failure::from(error).in_run())?;
        if let Err(error) = client.send(start()).await {
            if self.remove {
                // The engine removes what it could not start; the name is free again when we return.
                let _ = wait.bytes().await;
            }
            return Err(Failure::from(error).in_run());
        }
        let size = (self.tty && terminal::stdout_is_terminal())
            .then(|| streams::follow_size(client, format!("/containers/{id}/resize")));
        if let Some(stream) = stream {
            let connect = Connect { tty: self.tty, stdin: self.stdin, keys: self.keys };
            if streams::connect(stream, &connect).await? == Ended::Detached {
                return Ok(());
            }
        }
        let code = exit_code(wait).await.map_err(Failure::in_run)?;
        drop((proxy, size));
        if code == 0 { Ok(()) } else { Err(Failure::Exit(code)) }
    }

    fn call(&self, id: &str) -> Call {
        Call::post(format!("/containers/{id}/attach"))
            .maybe("detachKeys", self.keys.as_deref())
            .switch("stderr", self.stderr)
            .switch("stdin", self.stdin)
            .switch("stdout", self.stdout)
            .query("stream", "1")
            .header("content-type", "text/plain")
    }
}

/// Starts a container, from a checkpoint if one is given.
pub fn start_call(container: &str, checkpoint: Option<&str>, dir: Option<&str>) -> Call {
    Call::post(format!("/containers/{}/start", escape(container, false)))
        .maybe("checkpoint", checkpoint)
        .maybe("checkpoint-dir", dir)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Waited {
    status_code: i64,
    #[serde(default)]
    error: Option<WaitError>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WaitError {
    #[serde(default)]
    message: String,
}

/// The exit code in the answer to `wait`.
pub async fn exit_code(wait: Reply) -> Outcome<u8> {
    let code = status(wait).await?;
    // A code beyond a byte is what the kernel would make of it, too.
    Ok(u8::try_from(code & 0xff).unwrap_or(125))
}

/// The status in the answer to `wait`, as it is.
pub async fn status(wait: Reply) -> Outcome<i64> {
    let waited: Waited = wait.json().await?;
    match waited.error {
        Some(error) if !error.message.is_empty() => Err(Failure::Refused(error.message)),
        _ => Ok(waited.status_code),
    }
}
