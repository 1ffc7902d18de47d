//! The session's services, called as a builder does, over a pipe in this process.

use super::*;
use crate::commands::build::specs::{Destination, SecretSource};
use proto::grpc::health::v1::health_client::HealthClient;
use proto::moby::buildkit::secrets::v1::{GetSecretRequest, secrets_client::SecretsClient};
use proto::moby::filesync::v1::file_send_client::FileSendClient;
use proto::moby::filesync::v1::file_sync_client::FileSyncClient;
use proto::moby::filesync::v1::{BytesMessage, CredentialsRequest, auth_client::AuthClient};
use proto::moby::sshforward::v1::{self as ssh, ssh_client::SshClient};
use proto::moby::upload::v1::upload_client::UploadClient;
use std::sync::Mutex;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

/// A builder at the other end of a session with this offer.
async fn builder(offer: Offer) -> Channel {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    tokio::spawn(serve(hyper_util::rt::TokioIo::new(ours), routes(offer)));
    let theirs = Mutex::new(Some(hyper_util::rt::TokioIo::new(theirs)));
    let connector = tower::service_fn(move |_: hyper::Uri| {
        let io = theirs.lock().unwrap().take();
        async { io.ok_or_else(|| std::io::Error::other("one connection")) }
    });
    Endpoint::from_static("http://session").connect_with_connector(connector).await.unwrap()
}

fn with_header<T>(message: T, key: &'static str, value: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(key, value.parse().unwrap());
    request
}

#[tokio::test]
async fn a_client_is_there_and_offers_what_it_was_told_to() {
    let secrets = [
        ("path".to_owned(), SecretSource::Variable("PATH".into())),
        ("gone".to_owned(), SecretSource::File("/nonexistent".into())),
        ("huge".to_owned(), SecretSource::File("/dev/zero".into())),
    ];
    let channel = builder(Offer { secrets: secrets.into(), ..Offer::default() }).await;
    let health = HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(health.into_inner().status(), ServingStatus::Serving);
    let mut client = SecretsClient::new(channel.clone());
    let mut get = async |id: &str| {
        let request = GetSecretRequest { id: id.to_owned(), ..GetSecretRequest::default() };
        client.get_secret(request).await.map(|reply| reply.into_inner().data)
    };
    assert_eq!(get("path").await.unwrap(), std::env::var("PATH").unwrap().into_bytes());
    assert_eq!(get("other").await.unwrap_err().code(), Code::NotFound);
    assert!(get("gone").await.unwrap_err().message().contains("/nonexistent"));
    assert!(get("huge").await.unwrap_err().message().contains("larger than"));
    let none = AuthClient::new(channel.clone()).credentials(CredentialsRequest { host: "reg.test".into() }).await;
    assert_eq!(none.unwrap().into_inner().secret, "");
    let empty = tokio_stream::empty();
    let folder = with_header(empty, "dir-name", "/etc");
    let refused = FileSyncClient::new(channel.clone()).diff_copy(folder).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::NotFound, "no access allowed to dir \"/etc\""));
    let upload = UploadClient::new(channel.clone()).pull(with_header(tokio_stream::empty(), "urlpath", "/x")).await;
    assert_eq!(upload.unwrap_err().code(), Code::NotFound);
    let agent = SshClient::new(channel).check_agent(ssh::CheckAgentRequest { id: String::new() }).await;
    assert_eq!(agent.unwrap_err().message(), "unset ssh forward key default");
}

#[tokio::test]
async fn credentials_go_by_the_registry() {
    let json = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dXNlcjpodWI="},"reg.test:5000":{"auth":"dXNlcjpwYQ=="},
        "token.test":{"identitytoken":"it"}}}"#;
    let config: crate::output::value::Value = serde_json::from_str(json).unwrap();
    let credentials = Arc::new(Credentials::load(None, &config));
    let mut client = AuthClient::new(builder(Offer { credentials, ..Offer::default() }).await);
    for (host, user, secret) in [
        ("registry-1.docker.io", "user", "hub"),
        ("docker.io", "user", "hub"),
        ("reg.test:5000", "user", "pa"),
        ("reg.test", "", ""),
        ("evil.test/reg.test:5000", "", ""),
        ("token.test", "", "it"),
    ] {
        let reply = client.credentials(CredentialsRequest { host: host.into() }).await.unwrap().into_inner();
        assert_eq!((reply.username.as_str(), reply.secret.as_str()), (user, secret), "{host}");
    }
}

#[tokio::test]
async fn archives_are_there_when_they_are_complete() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.tar");
    std::fs::write(&path, "old").unwrap();
    let results = [(1, Destination::File(path.clone()))].into();
    let mut client = FileSendClient::new(builder(Offer { results, ..Offer::default() }).await);
    let pieces = |texts: &[&str]| {
        let all: Vec<_> = texts.iter().map(|text| BytesMessage { data: text.as_bytes().to_vec().into() }).collect();
        tokio_stream::iter(all)
    };
    let mut answer = client.diff_copy(pieces(&["one", "two"])).await.unwrap().into_inner();
    assert!(answer.next().await.is_none(), "the end is said when all is written");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "onetwo");
    let missing = with_header(pieces(&["x"]), "buildkit-attachable-exporter-id", "7");
    assert_eq!(client.diff_copy(missing).await.unwrap_err().message(), "exporter 7 not found");
    // One that breaks off changes nothing.
    let (sender, stream) = tokio::sync::mpsc::channel(4);
    sender.send(BytesMessage { data: "half".into() }).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let numbered = with_header(stream, "buildkit-attachable-exporter-id", "1");
    let answer = client.diff_copy(numbered).await.unwrap().into_inner();
    drop(answer);
    drop(sender);
    drop(client);
    tokio::time::timeout(std::time::Duration::from_secs(10), async {
        while std::fs::read_dir(dir.path()).unwrap().count() > 1 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text == "onetwo" || text == "half", "{text}");
}

#[tokio::test]
async fn an_agent_signs_and_nothing_else() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let agent = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut question = [0; 5];
        stream.read_exact(&mut question).await.unwrap();
        stream.write_all(&[0, 0, 0, 2, 12, 7]).await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        (question, rest)
    });
    let (agents, started) = Agents::of(&[("a".to_owned(), vec![path])], &|_| None).unwrap();
    assert!(started.is_empty());
    let channel = builder(Offer { agents, ..Offer::default() }).await;
    let mut client = SshClient::new(channel);
    client.check_agent(ssh::CheckAgentRequest { id: "a".into() }).await.unwrap();
    // REQUEST_IDENTITIES in two pieces, then REMOVE_ALL_IDENTITIES.
    let pieces: Vec<_> =
        [&[0u8, 0, 0][..], &[1, 11, 0, 0, 0, 1], &[19]].map(|data| ssh::BytesMessage { data: data.to_vec() }).into();
    let request = with_header(tokio_stream::iter(pieces), "buildkit.ssh.id", "a");
    let mut answers = client.forward_agent(request).await.unwrap().into_inner();
    assert_eq!(answers.next().await.unwrap().unwrap().data, [0, 0, 0, 2, 12, 7]);
    assert_eq!(answers.next().await.unwrap().unwrap().data, [0, 0, 0, 1, 5]);
    drop(answers);
    let (question, rest) = agent.await.unwrap();
    assert_eq!((question, rest), ([0, 0, 0, 1, 11], vec![]), "the agent has not heard of it");
}

#[tokio::test]
async fn folders_go_to_the_builder_and_come_back() {
    use filesync::receive::{Options, receive};
    use filesync::send::{Filter, send};
    use tokio::sync::mpsc;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["context/sub", "builder", "out/kept"] {
        std::fs::create_dir_all(at(name)).unwrap();
    }
    for (name, text) in
        [("context/a", "A"), ("context/sub/b", "B"), ("context/no", "N"), ("out/a", "old"), ("out/x", "X")]
    {
        std::fs::write(at(name), text).unwrap();
    }
    let offer = Offer {
        folders: [("context".to_owned(), at("context"))].into(),
        results: [(0, Destination::Folder(at("out")))].into(),
        ..Offer::default()
    };
    let channel = builder(offer).await;
    // The builder has what it asks for.
    let (to, requests) = mpsc::channel(16);
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut request = with_header(requests, "dir-name", "context");
    request.metadata_mut().insert("exclude-patterns", "no".parse().unwrap());
    let mut packets = FileSyncClient::new(channel.clone()).diff_copy(request).await.unwrap().into_inner();
    let (sender, incoming) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Some(Ok(packet)) = packets.next().await {
            sender.send(packet).await.ok();
        }
    });
    let root = std::fs::File::open(at("builder")).unwrap();
    receive(std::os::fd::OwnedFd::from(root), incoming, to, Options::default()).await.unwrap();
    let text = |name: &str| std::fs::read_to_string(at(name)).unwrap_or_default();
    assert_eq!((text("builder/a"), text("builder/sub/b"), text("builder/no")), ("A".into(), "B".into(), String::new()));
    // And sends its result, by the other call: packets in the place of bytes.
    let (to, requests) = mpsc::channel::<proto::fsutil::types::Packet>(16);
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let path = "/moby.filesync.v1.FileSend/DiffCopy".parse().unwrap();
    let mut packets = grpc.streaming(Request::new(requests), path, Packets).await.unwrap().into_inner();
    let (sender, incoming) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Some(Ok(packet)) = packets.next().await {
            sender.send(packet).await.ok();
        }
    });
    send(&at("builder"), &Filter::default(), incoming, to).await.unwrap();
    assert_eq!((text("out/a"), text("out/sub/b"), text("out/x")), ("A".into(), "B".into(), "X".into()));
    assert!(at("out/kept").is_dir());
}

/// Packets, for a call that is declared with other messages.
struct Packets;

impl tonic::codec::Codec for Packets {
    type Encode = proto::fsutil::types::Packet;
    type Decode = proto::fsutil::types::Packet;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for Packets {
    type Item = proto::fsutil::types::Packet;
    type Error = Status;

    fn encode(&mut self, item: Self::Item, to: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), Status> {
        prost::Message::encode(&item, to).map_err(|error| Status::internal(error.to_string()))
    }
}

impl tonic::codec::Decoder for Packets {
    type Item = proto::fsutil::types::Packet;
    type Error = Status;

    fn decode(&mut self, from: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        prost::Message::decode(from).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
