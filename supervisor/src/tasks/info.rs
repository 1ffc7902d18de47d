//! What a runtime's shim says about itself (`-info`).

use std::{process::Stdio, time::Duration};

use prost::Message;
use prost_types::Any;
use proto::{containerd::types::RuntimeInfo, kind::ErrorKind};
use tokio::{io::AsyncWriteExt, process::Command};

use super::{Tasks, runtimes::RuntimeError};
use crate::failure::Failure;

/// How long it may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Why a runtime can't be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InfoError {
    /// There is none of that name.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// Its shim has no answer.
    #[error("shim {shim} does not say what it is (-info): {why}")]
    Silent {
        /// The program.
        shim: String,
        /// Why, in one line.
        why: String,
    },
}

impl Failure for InfoError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Runtime(error) => error.kind(),
            Self::Silent { .. } => ErrorKind::Unimplemented,
        }
    }
}

impl Tasks {
    /// Asks the shim of a runtime, with the runtime's options.
    pub(crate) async fn runtime_info(&self, runtime: &str, options: Option<Any>) -> Result<RuntimeInfo, InfoError> {
        let shim = self.runtimes.shim(runtime)?;
        let silent = |why: String| InfoError::Silent { shim: shim.display().to_string(), why };
        let asked = async {
            let mut command = Command::new(&shim);
            command.arg("-info").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
            let mut child = command.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                // One that doesn't read it may be gone already.
                let _ = stdin.write_all(&options.unwrap_or_default().encode_to_vec()).await;
            }
            child.wait_with_output().await
        };
        let output = match tokio::time::timeout(LIMIT, asked).await {
            Ok(output) => output.map_err(|error| silent(error.to_string()))?,
            Err(_) => return Err(silent(format!("no answer within {} s", LIMIT.as_secs()))),
        };
        if !output.status.success() {
            return Err(silent(output.status.to_string()));
        }
        RuntimeInfo::decode(&*output.stdout).map_err(|error| silent(error.to_string()))
    }
}
