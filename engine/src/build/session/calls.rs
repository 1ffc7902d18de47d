//! What a client is asked in one question and one answer, or in a stream of bytes: secrets, credentials, its agent's socket, its
//! standard input.

use super::{Session, SessionError, metadata};
use crate::supervisor::auth::{Credentials, Form};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use proto::{
    kind::ErrorKind,
    moby::{
        buildkit::secrets::v1::{GetSecretRequest, secrets_client::SecretsClient},
        filesync::v1::{CredentialsRequest, auth_client::AuthClient},
        sshforward::v1::{BytesMessage as SshBytes, CheckAgentRequest, ssh_client::SshClient},
        upload::v1::upload_client::UploadClient,
    },
};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// How long a client may take for one answer: it may have to ask a program for a password, or its user.
const ANSWER: Duration = Duration::from_secs(60);
/// The largest secret.
const SECRET: usize = 500 << 10;
/// The largest message.
pub(super) const MESSAGE: usize = 16 << 20;

impl Session {
    /// A secret. `NotFound` if the client hasn't it.
    pub async fn secret(&self, id: &str) -> Result<Vec<u8>, SessionError> {
        let what = format!("secret {id}");
        let not_found =
            || SessionError::Refused { what: what.clone(), kind: ErrorKind::NotFound, message: "not found".into() };
        if !self.supports("/moby.buildkit.secrets.v1.Secrets/GetSecret") {
            return Err(not_found());
        }
        let mut client = SecretsClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE);
        let request = GetSecretRequest { id: id.to_owned(), ..GetSecretRequest::default() };
        match self.answer(&what, client.get_secret(request)).await {
            Ok(answer) if answer.data.len() > SECRET => {
                Err(SessionError::Large { what, size: answer.data.len(), limit: SECRET })
            }
            Ok(answer) => Ok(answer.data),
            Err(error) if error.is_not_served() => Err(not_found()),
            Err(error) => Err(error),
        }
    }

    /// Name and password for a registry (`registry-1.docker.io`), if the client has any. It could get tokens for us instead
    /// (FetchToken), but supervisors ask for credentials.
    pub async fn credentials(&self, host: &str) -> Result<Option<Credentials>, SessionError> {
        if !self.supports("/moby.filesync.v1.Auth/Credentials") {
            return Ok(None);
        }
        let what = format!("credentials for {host}");
        let mut client = AuthClient::new(self.channel.clone());
        let answer = match self.answer(&what, client.credentials(CredentialsRequest { host: host.to_owned() })).await {
            Ok(answer) => answer,
            Err(error) if error.is_not_served() => return Ok(None),
            Err(error) => return Err(error),
        };
        if answer.secret.is_empty() {
            return Ok(None);
        }
        let form = if answer.username.is_empty() { Form::IdentityToken } else { Form::Password };
        Ok(Some(Credentials { username: answer.username, secret: answer.secret, form }))
    }

    /// Whether the client has an agent of this name (`default`).
    pub async fn check_agent(&self, id: &str) -> Result<(), SessionError> {
        self.needs("/moby.sshforward.v1.SSH/CheckAgent")?;
        let mut client = SshClient::new(self.channel.clone());
        self.answer(&format!("ssh agent {id}"), client.check_agent(CheckAgentRequest { id: id.to_owned() })).await?;
        Ok(())
    }

    /// Joins a connection to the socket of the client's agent, until one of them ends it.
    pub async fn forward_agent(&self, id: &str, socket: UnixStream) -> Result<(), SessionError> {
        self.needs("/moby.sshforward.v1.SSH/ForwardAgent")?;
        let what = format!("ssh agent {id}");
        let (mut read, mut write) = socket.into_split();
        let (sender, receiver) = mpsc::channel(8);
        let mut request = Request::new(ReceiverStream::new(receiver));
        metadata::put(request.metadata_mut(), "buildkit.ssh.id", &[id.to_owned()])?;
        let outwards = async move {
            loop {
                let mut data = Vec::with_capacity(32 << 10);
                match read.read_buf(&mut data).await {
                    Ok(0) | Err(_) => break,
                    Ok(_) if sender.send(SshBytes { data }).await.is_err() => break,
                    Ok(_) => {}
                }
            }
            // With the sender our half of the stream ends; the agent may still have something to say.
            drop(sender);
            std::future::pending::<Result<(), SessionError>>().await
        };
        let inwards = async {
            let mut client = SshClient::new(self.channel.clone());
            let failed = |status: Status| SessionError::of(what.as_str(), &status);
            let mut answers = client.forward_agent(request).await.map_err(failed)?.into_inner();
            while let Some(message) = answers.message().await.map_err(failed)? {
                // Who has hung up hasn't anything to hear.
                if write.write_all(&message.data).await.is_err() {
                    break;
                }
            }
            let _ = write.shutdown().await;
            Ok(())
        };
        self.unless_gone(async {
            tokio::select! {
                result = inwards => result,
                result = outwards => result,
            }
        })
        .await
    }

    /// What the client was given on its standard input: the archive or Dockerfile at `http://HOST/PATH` of its own.
    pub async fn upload(
        &self,
        host: &str,
        path: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, SessionError>> + Send + use<>, SessionError> {
        self.needs("/moby.upload.v1.Upload/Pull")?;
        let what = format!("upload {path}");
        // It lasts as long as the answer: its end would be a hang-up to some clients.
        let (silence, receiver) = mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(receiver));
        metadata::put(request.metadata_mut(), "urlhost", &[host.to_owned()])?;
        metadata::put(request.metadata_mut(), "urlpath", &[path.to_owned()])?;
        let mut client = UploadClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE);
        // However long it takes: what the client reads from may be another program that is at work.
        let pulling = async { client.pull(request).await.map_err(|status| SessionError::of(what.as_str(), &status)) };
        let answers = self.unless_gone(pulling).await?.into_inner();
        Ok(answers.map(move |message| {
            let _ = &silence;
            message.map(|m| Bytes::from(m.data)).map_err(|status| SessionError::of(what.as_str(), &status))
        }))
    }

    /// An answer in time.
    pub(super) async fn answer<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, SessionError> {
        self.unless_gone(async {
            match tokio::time::timeout(ANSWER, call).await {
                Ok(Ok(response)) => Ok(response.into_inner()),
                Ok(Err(status)) => Err(SessionError::of(what, &status)),
                Err(_) => Err(SessionError::Late { what: what.to_owned(), limit: ANSWER }),
            }
        })
        .await
    }
}
