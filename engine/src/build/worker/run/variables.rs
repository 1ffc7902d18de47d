//! Secrets that become variables of a command. They are not in the specification of its container, since a supervisor keeps that on
//! disk, and a runtime what it makes of it: the first program in the container (`shim/src/env.rs`) reads them from a pipe and
//! becomes the command.

use super::failed;
use crate::{app::App, containers::init};
use ::spec::users::User;
use nix::{
    sys::stat::Mode,
    unistd::{Gid, Uid, chown, mkfifo},
};
use serde_json::{Value, json};
use solver::StepError;
use std::path::{Path, PathBuf};
use tokio::{io::AsyncWriteExt as _, net::unix::pipe::OpenOptions, task::JoinSet};
use tracing::warn;

/// Where the container sees the program, whose name says what it does. In `/dev`, which is a filesystem of the container's own: no
/// mount point is made in the root for it.
const PROGRAM: &str = "/dev/.berth/berth-env";
/// Where it sees the pipe.
const PIPE: &str = "/dev/.berth/variables";

/// Variables on their way to a command.
pub struct Variables {
    program: PathBuf,
    pipe: PathBuf,
    /// Ends when this is dropped, and with it the pipe.
    _writing: JoinSet<()>,
}

impl Variables {
    /// Offers them (`NAME=value`) in a pipe in `folder`, to be read once, by that user.
    pub fn offer(app: &App, variables: &[String], folder: &Path, user: &User) -> Result<Self, StepError> {
        let what = "give a run its secrets as variables";
        let program = init::own(app).map_err(failed(what))?.ok_or("there is no berth-shim on this machine");
        let program = program.map_err(failed(what))?;
        let mut text: Vec<u8> = Vec::new();
        for variable in variables {
            text.extend_from_slice(variable.as_bytes());
            text.push(0);
        }
        let length = u32::try_from(text.len()).map_err(failed(what))?;
        let bytes = [&length.to_be_bytes(), text.as_slice()].concat();
        let pipe = folder.join("variables");
        mkfifo(&pipe, Mode::S_IRUSR).map_err(failed(what))?;
        chown(&pipe, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid))).map_err(failed(what))?;
        // With a reading end of our own: nobody waits for the other side to open it.
        let mut sender = OpenOptions::new().read_write(true).open_sender(&pipe).map_err(failed(what))?;
        let mut writing = JoinSet::new();
        writing.spawn(async move {
            if let Err(error) = sender.write_all(&bytes).await {
                warn!(%error, "variables of a run");
            }
            drop(bytes);
            // A pipe without writers would keep the program waiting, or be empty for it.
            std::future::pending::<()>().await;
        });
        Ok(Self { program, pipe, _writing: writing })
    }

    /// Puts the program before the command.
    pub fn arrange(&self, spec: &mut Value) {
        if let Some(args) = spec["process"]["args"].as_array_mut() {
            args.splice(0..0, [json!(PROGRAM), json!(PIPE)]);
        }
        let Some(mounts) = spec["mounts"].as_array_mut() else { return };
        let bound = |at: &str, source: &Path, further: &[&str]| {
            let options = [&["bind", "rprivate", "ro", "nosuid", "nodev"], further].concat();
            json!({"type": "bind", "destination": at, "source": source, "options": options})
        };
        mounts.push(bound(PROGRAM, &self.program, &[]));
        mounts.push(bound(PIPE, &self.pipe, &["noexec"]));
    }
}
