//! SSH agents for steps: the user's own, or one of ours that holds the keys that were named.
//!
//! A step may list keys and have things signed. Anything else that an agent can do (add and remove keys, lock, extensions) is
//! answered with a failure: it would be done to the user's agent.

use super::Outgoing;
use proto::moby::sshforward::v1::ssh_server::Ssh;
use proto::moby::sshforward::v1::{BytesMessage, CheckAgentRequest, CheckAgentResponse};
use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

/// The longest message of the agent's protocol, as OpenSSH has it.
const LONGEST: usize = 256 << 10;
/// SSH_AGENTC_REQUEST_IDENTITIES, SSH_AGENTC_SIGN_REQUEST
const ALLOWED: [u8; 2] = [11, 13];
/// A message that is SSH_AGENT_FAILURE.
const FAILURE: [u8; 5] = [0, 0, 0, 1, 5];

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nothing was named, and there is no agent.
    #[error("invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set")]
    NoAgent,
    /// A path that is nothing.
    #[error("ssh {id}: {path}: {cause}")]
    Path {
        /// The agent's name.
        id: String,
        /// The path.
        path: String,
        /// Why.
        cause: std::io::Error,
    },
    /// A socket beside other things.
    #[error("ssh {0}: a socket and keys can't be used together, nor several sockets")]
    Mixed(String),
    /// The programs of OpenSSH.
    #[error("ssh {id}: {what}")]
    Program {
        /// The agent's name.
        id: String,
        /// What has gone wrong.
        what: String,
    },
    /// The same name twice.
    #[error("invalid duplicate ID {0}")]
    Twice(String),
}

/// Agents by name.
#[derive(Debug, Default)]
pub struct Agents {
    sockets: BTreeMap<String, PathBuf>,
}

impl Agents {
    /// Those of the flags, and those that were started for it; `variable` reads one of the environment.
    pub fn of(
        specs: &[(String, Vec<PathBuf>)],
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(Self, Vec<Own>), AgentError> {
        let (mut agents, mut started) = (Self::default(), Vec::new());
        for (id, paths) in specs {
            let id = if id.is_empty() { "default".to_owned() } else { id.clone() };
            if agents.sockets.contains_key(&id) {
                return Err(AgentError::Twice(id));
            }
            let paths = match paths.as_slice() {
                [] => {
                    vec![variable("SSH_AUTH_SOCK").filter(|path| !path.is_empty()).ok_or(AgentError::NoAgent)?.into()]
                }
                paths => paths.to_vec(),
            };
            let mut sockets = 0;
            for path in &paths {
                let about = std::fs::metadata(path).map_err(|cause| AgentError::Path {
                    id: id.clone(),
                    path: path.display().to_string(),
                    cause,
                })?;
                sockets += usize::from(about.file_type().is_socket());
            }
            let socket = match (paths.as_slice(), sockets) {
                ([socket], 1) => socket.clone(),
                (keys, 0) => {
                    let agent = Own::start(&id, keys)?;
                    let socket = agent.socket();
                    started.push(agent);
                    socket
                }
                _ => return Err(AgentError::Mixed(id)),
            };
            agents.sockets.insert(id, socket);
        }
        Ok((agents, started))
    }

    fn socket(&self, id: &str) -> Result<&Path, Status> {
        let id = if id.is_empty() { "default" } else { id };
        let found = self.sockets.get(id).map(PathBuf::as_path);
        found.ok_or_else(|| Status::not_found(format!("unset ssh forward key {id}")))
    }
}

/// An agent with nothing but the named keys; it ends when this is dropped.
#[derive(Debug)]
pub struct Own {
    child: Child,
    folder: PathBuf,
}

impl Own {
    fn start(id: &str, keys: &[PathBuf]) -> Result<Self, AgentError> {
        use std::os::unix::fs::DirBuilderExt;
        let failed = |what: String| AgentError::Program { id: id.to_owned(), what };
        let name = crate::commands::build::random_id().map_err(|cause| failed(format!("name an agent: {cause}")))?;
        let folder = std::env::temp_dir().join(format!("berth-agent-{name}"));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .map_err(|cause| failed(format!("make {}: {cause}", folder.display())))?;
        let child = Command::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(folder.join("agent"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(cause) => {
                let _ = std::fs::remove_dir(&folder);
                return Err(failed(format!("run ssh-agent for keys: {cause}: install openssh-client")));
            }
        };
        let agent = Self { child, folder };
        let socket = agent.socket();
        // It has no other way to say that it listens.
        for _ in 0..200 {
            if socket.exists() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let added = Command::new("ssh-add")
            .arg("-q")
            .args(keys)
            .env("SSH_AUTH_SOCK", &socket)
            .stdin(Stdio::null())
            .output()
            .map_err(|cause| failed(format!("run ssh-add: {cause}: install openssh-client")))?;
        if !added.status.success() {
            let text = String::from_utf8_lossy(&added.stderr).trim().replace('\n', ": ");
            return Err(failed(format!("ssh-add: {text}")));
        }
        Ok(agent)
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("agent")
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // It is ours alone, and may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[tonic::async_trait]
impl Ssh for Agents {
    async fn check_agent(&self, request: Request<CheckAgentRequest>) -> Result<Response<CheckAgentResponse>, Status> {
        self.socket(&request.into_inner().id)?;
        Ok(Response::new(CheckAgentResponse {}))
    }

    type ForwardAgentStream = Outgoing<BytesMessage>;

    async fn forward_agent(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let id = request.metadata().get("buildkit.ssh.id").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let socket = self.socket(id)?.to_owned();
        let agent = UnixStream::connect(&socket).await;
        let agent = agent.map_err(|cause| Status::unknown(format!("connect to {}: {cause}", socket.display())))?;
        let (sender, stream) = mpsc::channel(4);
        tokio::spawn(async move {
            if let Err(text) = forward(request.into_inner(), agent, &sender).await {
                let _ = sender.send(Err(Status::unknown(text))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// One question, one answer, as the protocol has it.
async fn forward(
    mut incoming: Streaming<BytesMessage>,
    mut agent: UnixStream,
    answers: &mpsc::Sender<Result<BytesMessage, Status>>,
) -> Result<(), String> {
    let mut pending = Vec::new();
    while let Some(Ok(message)) = incoming.next().await {
        pending.extend_from_slice(&message.data);
        while let Some(question) = next_message(&mut pending)? {
            let answer = match question.get(4) {
                Some(kind) if ALLOWED.contains(kind) => asked(&mut agent, &question).await?,
                _ => FAILURE.to_vec(),
            };
            if answers.send(Ok(BytesMessage { data: answer })).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

async fn asked(agent: &mut UnixStream, question: &[u8]) -> Result<Vec<u8>, String> {
    let failed = |cause: std::io::Error| format!("ask the ssh agent: {cause}");
    agent.write_all(question).await.map_err(failed)?;
    let mut answer = vec![0; 4];
    agent.read_exact(&mut answer).await.map_err(failed)?;
    let length = length_of(&answer)?;
    answer.resize(4 + length, 0);
    agent.read_exact(&mut answer[4..]).await.map_err(failed)?;
    Ok(answer)
}

/// Takes a whole message, length included, if there is one.
fn next_message(pending: &mut Vec<u8>) -> Result<Option<Vec<u8>>, String> {
    if pending.len() < 4 {
        return Ok(None);
    }
    let length = length_of(&pending[..4])?;
    if pending.len() < 4 + length {
        return Ok(None);
    }
    Ok(Some(pending.drain(..4 + length).collect()))
}

fn length_of(head: &[u8]) -> Result<usize, String> {
    let length = head.iter().fold(0usize, |sum, byte| (sum << 8) | usize::from(*byte));
    if length > LONGEST { Err(format!("a message of {length} bytes is too long for an ssh agent")) } else { Ok(length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_in_any_pieces() {
        let mut pending = vec![0, 0, 0];
        assert_eq!(next_message(&mut pending), Ok(None));
        pending.extend([2, 11]);
        assert_eq!(next_message(&mut pending), Ok(None));
        pending.extend([9, 0, 0]);
        assert_eq!(next_message(&mut pending), Ok(Some(vec![0, 0, 0, 2, 11, 9])));
        assert_eq!(pending, [0, 0]);
        assert!(next_message(&mut vec![0xff, 0, 0, 0]).is_err());
    }

    #[test]
    fn agents_that_are_none() {
        let none = |_: &str| None;
        let of = |id: &str, paths: &[&str]| {
            let paths = paths.iter().map(PathBuf::from).collect();
            Agents::of(&[(id.to_owned(), paths)], &none).map(|_| ()).unwrap_err().to_string()
        };
        assert!(of("default", &[]).contains("SSH_AUTH_SOCK"));
        assert!(of("a", &["/nonexistent"]).starts_with("ssh a: /nonexistent: "));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let text = path.to_str().unwrap();
        assert!(of("a", &[text, text]).contains("can't be used together"));
        let twice = [("a".to_owned(), vec![path.clone()]), ("a".to_owned(), vec![path])];
        assert!(matches!(Agents::of(&twice, &none), Err(AgentError::Twice(_))));
    }
}
