//! Programs that keep credentials, `docker-credential-NAME`: one word as argument (get, store or erase), text on standard
//! input, JSON or an error text on standard output.

use serde::{Deserialize, Serialize};
use std::{
    env, io,
    path::Path,
    process::{Command, Stdio},
};

/// Why a helper was of no help.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// It can't be run.
    #[error("docker-credential-{helper} {action}: {cause}")]
    Run {
        /// The helper.
        helper: String,
        /// What it was to do.
        action: &'static str,
        /// Why.
        cause: io::Error,
    },
    /// It says no.
    #[error("docker-credential-{helper} {action}: {text}")]
    Refused {
        /// The helper.
        helper: String,
        /// What it was to do.
        action: &'static str,
        /// Its words.
        text: String,
    },
    /// It says something that isn't of the protocol.
    #[error("docker-credential-{helper} {action} answered with something else than JSON of its protocol")]
    Babble {
        /// The helper.
        helper: String,
        /// What it was to do.
        action: &'static str,
    },
    /// Its name is a path.
    #[error("{0:?} is no name of a credential helper")]
    Name(String),
}

/// What helpers say of a registry they don't know; an error by the exit code, but not one.
const NOT_FOUND: &str = "credentials not found in native keychain";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Credentials {
    #[serde(rename = "ServerURL", default)]
    server: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// User name and secret for a registry, if the helper has them.
pub fn get(helper: &str, server: &str) -> Result<Option<(String, String)>, HelperError> {
    let text = match talk(helper, "get", server.as_bytes()) {
        Err(HelperError::Refused { text, .. }) if text == NOT_FOUND => return Ok(None),
        other => other?,
    };
    // Its answer holds a secret: it is not for error texts.
    let known: Credentials =
        serde_json::from_str(&text).map_err(|_| HelperError::Babble { helper: helper.to_owned(), action: "get" })?;
    Ok(Some((known.username, known.secret)))
}

/// Keeps user name and secret for a registry.
pub fn store(helper: &str, server: &str, username: &str, secret: &str) -> Result<(), HelperError> {
    let known = Credentials { server: server.to_owned(), username: username.to_owned(), secret: secret.to_owned() };
    let text = serde_json::to_vec(&known).unwrap_or_default();
    talk(helper, "store", &text).map(drop)
}

/// Forgets a registry.
pub fn erase(helper: &str, server: &str) -> Result<(), HelperError> {
    match talk(helper, "erase", server.as_bytes()) {
        Err(HelperError::Refused { text, .. }) if text == NOT_FOUND => Ok(()),
        other => other.map(drop),
    }
}

fn talk(helper: &str, action: &'static str, input: &[u8]) -> Result<String, HelperError> {
    if helper.contains('/') {
        return Err(HelperError::Name(helper.to_owned()));
    }
    let fault = |cause| HelperError::Run { helper: helper.to_owned(), action, cause };
    let mut child = Command::new(format!("docker-credential-{helper}"))
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => fault(io::Error::new(cause.kind(), "executable file not found in $PATH")),
            _ => fault(cause),
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        match io::Write::write_all(&mut stdin, input) {
            // It did not want to read: its exit code tells why.
            Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => {}
            other => other.map_err(fault)?,
        }
    }
    let output = child.wait_with_output().map_err(fault)?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() {
        return Ok(text);
    }
    let text = if text.is_empty() { output.status.to_string() } else { text };
    Err(HelperError::Refused { helper: helper.to_owned(), action, text })
}

/// The store that docker would take on a machine where nobody has chosen one.
pub fn default_store() -> Option<&'static str> {
    let store = if on_path("pass") { "pass" } else { "secretservice" };
    on_path(&format!("docker-credential-{store}")).then_some(store)
}

fn on_path(program: &str) -> bool {
    let Some(path) = env::var_os("PATH") else { return false };
    env::split_paths(&path).any(|dir| is_executable(&dir.join(program)))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_not_paths() {
        assert!(matches!(get("../../tmp/x", "a"), Err(HelperError::Name(_))));
        let error = get("berth-no-such-helper", "a").unwrap_err().to_string();
        assert_eq!(error, "docker-credential-berth-no-such-helper get: executable file not found in $PATH");
    }
}
