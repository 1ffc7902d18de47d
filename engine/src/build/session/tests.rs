//! Sessions against a client in this process: a gRPC server on the other end of a stream.

use super::*;
use bytes::Bytes;
use filesync::{
    receive::{Options, receive},
    send::{Filter, send},
};
use futures_util::{Stream, StreamExt, TryStreamExt};
use proto::{
    fsutil::types::{Packet, packet::PacketType},
    grpc::health::v1::{
        HealthCheckRequest, HealthCheckResponse,
        health_server::{Health, HealthServer},
    },
    kind::{ErrorKind, chain},
    moby::{
        buildkit::secrets::v1::{
            GetSecretRequest, GetSecretResponse,
            secrets_server::{Secrets, SecretsServer},
        },
        filesync::v1::{
            BytesMessage, CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse,
            GetTokenAuthorityRequest, GetTokenAuthorityResponse, VerifyTokenAuthorityRequest,
            VerifyTokenAuthorityResponse,
            auth_server::{Auth, AuthServer},
            file_send_server::{FileSend, FileSendServer},
            file_sync_server::{FileSync, FileSyncServer},
        },
        sshforward::v1::{
            BytesMessage as SshBytes, CheckAgentRequest, CheckAgentResponse,
            ssh_server::{Ssh, SshServer},
        },
        upload::v1::{
            BytesMessage as UploadBytes,
            upload_server::{Upload, UploadServer},
        },
    },
};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::UnixStream,
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// An archive that came, or why not.
type Exported = Result<Vec<u8>, String>;

/// What a client has.
#[derive(Debug, Clone, Default)]
pub(in crate::build) struct Client {
    context: PathBuf,
    /// How many files it was asked for.
    pub asked: Arc<AtomicU64>,
    told: Arc<Mutex<Vec<(String, String)>>>,
    exported: Arc<Mutex<Option<Exported>>>,
}

impl Client {
    pub fn with_context(context: &Path) -> Self {
        Self { context: context.to_owned(), ..Self::default() }
    }

    fn note(&self, metadata: &MetadataMap) {
        let mut told = self.told.lock().unwrap();
        for entry in metadata.iter() {
            if let tonic::metadata::KeyAndValueRef::Ascii(key, value) = entry {
                told.push((key.to_string(), value.to_str().unwrap().to_owned()));
            }
        }
    }

    fn said(&self, key: &str) -> Vec<String> {
        self.told.lock().unwrap().iter().filter(|(k, _)| k == key).map(|(_, v)| v.clone()).collect()
    }
}

#[tonic::async_trait]
impl Health for Client {
    type WatchStream = Answers<HealthCheckResponse>;

    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse { status: 1 }))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("watch"))
    }
}

#[tonic::async_trait]
impl FileSync for Client {
    type DiffCopyStream = Answers<Packet>;
    type TarStreamStream = Answers<Packet>;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Self::DiffCopyStream>, Status> {
        self.note(request.metadata());
        let all = |key: &str| request.metadata().get_all(key).iter().map(|v| v.to_str().unwrap().to_owned()).collect();
        let filter = Filter {
            include: all("include-patterns"),
            exclude: all("exclude-patterns"),
            follow: all("followpaths"),
            owned_by_root: true,
        };
        if request.metadata().get("dir-name").unwrap() != "context" {
            return Err(Status::not_found("no access allowed to dir \"x\""));
        }
        let (outgoing, packets) = mpsc::channel(64);
        let (sender, incoming) = mpsc::channel(64);
        let mut packets_in = request.into_inner();
        let asked = self.asked.clone();
        tokio::spawn(async move {
            while let Ok(Some(packet)) = packets_in.message().await {
                if packet.r#type() == PacketType::PacketReq {
                    asked.fetch_add(1, Ordering::Relaxed);
                }
                if sender.send(packet).await.is_err() {
                    return;
                }
            }
        });
        let context = self.context.clone();
        tokio::spawn(async move { send(&context, &filter, incoming, outgoing).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(packets).map(Ok))))
    }

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Self::TarStreamStream>, Status> {
        Err(Status::unimplemented("tar"))
    }
}

/// Takes archives.
#[tonic::async_trait]
impl FileSend for Client {
    type DiffCopyStream = Answers<BytesMessage>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        self.note(request.metadata());
        let mut body = request.into_inner();
        let mut all = Vec::new();
        let result = loop {
            match body.message().await {
                Ok(Some(message)) => all.extend_from_slice(&message.data),
                Ok(None) => break Ok(all),
                Err(status) => break Err(status.to_string()),
            }
        };
        *self.exported.lock().unwrap() = Some(result);
        Ok(Response::new(Box::pin(futures_util::stream::empty())))
    }
}

#[tonic::async_trait]
impl Secrets for Client {
    async fn get_secret(&self, request: Request<GetSecretRequest>) -> Result<Response<GetSecretResponse>, Status> {
        match request.into_inner().id.as_str() {
            "token" => Ok(Response::new(GetSecretResponse { data: b"abc".to_vec() })),
            "large" => Ok(Response::new(GetSecretResponse { data: vec![0; (500 << 10) + 1] })),
            "limit" => Ok(Response::new(GetSecretResponse { data: vec![0; 500 << 10] })),
            "never" => std::future::pending().await,
            "denied" => Err(Status::permission_denied("not\nfor you")),
            id => Err(Status::not_found(format!("secret {id} is nowhere"))),
        }
    }
}

#[tonic::async_trait]
impl Auth for Client {
    async fn credentials(&self, request: Request<CredentialsRequest>) -> Result<Response<CredentialsResponse>, Status> {
        let (username, secret) = match request.into_inner().host.as_str() {
            "a.example" => ("me", "password"),
            "b.example" => ("", "identity"),
            _ => ("", ""),
        };
        Ok(Response::new(CredentialsResponse { username: username.into(), secret: secret.into() }))
    }

    async fn fetch_token(&self, request: Request<FetchTokenRequest>) -> Result<Response<FetchTokenResponse>, Status> {
        let token = request.into_inner().scopes.join(" ");
        Ok(Response::new(FetchTokenResponse { token, expires_in: 300, issued_at: 0 }))
    }

    async fn get_token_authority(
        &self,
        _: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        Err(Status::unavailable("getting token authority disabled"))
    }

    async fn verify_token_authority(
        &self,
        _: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        Err(Status::unavailable("no"))
    }
}

#[tonic::async_trait]
impl Ssh for Client {
    type ForwardAgentStream = Answers<SshBytes>;

    async fn check_agent(&self, request: Request<CheckAgentRequest>) -> Result<Response<CheckAgentResponse>, Status> {
        match request.into_inner().id.as_str() {
            "default" => Ok(Response::new(CheckAgentResponse {})),
            id => Err(Status::not_found(format!("unset ssh forward key {id}"))),
        }
    }

    async fn forward_agent(
        &self,
        request: Request<Streaming<SshBytes>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        self.note(request.metadata());
        // An agent that says everything backwards.
        let answers = request.into_inner().map_ok(|message| {
            let mut data = message.data;
            data.reverse();
            SshBytes { data }
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

#[tonic::async_trait]
impl Upload for Client {
    type PullStream = Answers<UploadBytes>;

    async fn pull(&self, request: Request<Streaming<UploadBytes>>) -> Result<Response<Self::PullStream>, Status> {
        self.note(request.metadata());
        let pieces = [&b"one "[..], b"two"].map(|data| Ok(UploadBytes { data: data.to_vec() }));
        Ok(Response::new(Box::pin(futures_util::stream::iter(pieces))))
    }
}

const METHODS: &[&str] = &[
    "/moby.filesync.v1.FileSync/DiffCopy",
    "/moby.filesync.v1.FileSend/DiffCopy",
    "/moby.buildkit.secrets.v1.Secrets/GetSecret",
    "/moby.filesync.v1.Auth/Credentials",
    "/moby.filesync.v1.Auth/FetchToken",
    "/moby.filesync.v1.Auth/GetTokenAuthority",
    "/moby.sshforward.v1.SSH/CheckAgent",
    "/moby.sshforward.v1.SSH/ForwardAgent",
    "/moby.upload.v1.Upload/Pull",
];

pub(in crate::build) fn announced(id: &str, methods: &[&str]) -> Announced {
    let mut headers = HeaderMap::new();
    headers.insert("x-docker-expose-session-uuid", id.parse().unwrap());
    headers.insert("X-Docker-Expose-Session-Name", "web".parse().unwrap());
    headers.insert("X-Docker-Expose-Session-Sharedkey", "shared".parse().unwrap());
    for method in methods {
        headers.append("X-Docker-Expose-Session-Grpc-Method", method.parse().unwrap());
    }
    Announced::from_headers(&headers).unwrap()
}

/// Our end, and the wire to the client: without the task it is cut.
pub(in crate::build) fn serve(client: &Client) -> (DuplexStream, tokio::task::JoinHandle<()>) {
    let (ours, mut near) = tokio::io::duplex(1 << 16);
    let (mut far, theirs) = tokio::io::duplex(1 << 16);
    let client = client.clone();
    tokio::spawn(async move {
        let incoming = futures_util::stream::iter([Ok::<_, io::Error>(theirs)]).chain(futures_util::stream::pending());
        let served = Server::builder()
            .add_service(HealthServer::new(client.clone()))
            .add_service(FileSyncServer::new(client.clone()))
            .add_service(FileSendServer::new(client.clone()))
            .add_service(SecretsServer::new(client.clone()))
            .add_service(AuthServer::new(client.clone()))
            .add_service(SshServer::new(client.clone()))
            .add_service(UploadServer::new(client))
            .serve_with_incoming(incoming);
        let _ = served.await;
    });
    let wire = tokio::spawn(async move { drop(tokio::io::copy_bidirectional(&mut near, &mut far).await) });
    (ours, wire)
}

fn session(client: &Client) -> (Sessions, Session, tokio::task::JoinHandle<()>) {
    let sessions = Sessions::new();
    let (stream, wire) = serve(client);
    let session = sessions.attach(announced("s1", METHODS), stream).unwrap();
    (sessions, session, wire)
}

#[tokio::test]
async fn secrets() {
    let (_, session, _wire) = session(&Client::default());
    assert_eq!(session.secret("token").await.unwrap(), b"abc");
    assert_eq!(session.secret("limit").await.unwrap().len(), 500 << 10);
    let cases = [
        ("none", ErrorKind::NotFound, "secret none: not found"),
        ("denied", ErrorKind::PermissionDenied, "secret denied: not for you"),
        ("large", ErrorKind::ResourceExhausted, "secret large: 512001 bytes are more than the 512000 that are allowed"),
    ];
    for (id, kind, text) in cases {
        let error = session.secret(id).await.unwrap_err();
        assert_eq!((error.kind(), chain(&error).as_str()), (kind, text));
    }
}

#[tokio::test]
async fn what_is_not_announced_is_not_asked_for() {
    let sessions = Sessions::new();
    let (stream, _wire) = serve(&Client::default());
    let session = sessions.attach(announced("s1", &[]), stream).unwrap();
    assert_eq!(session.secret("token").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(session.credentials("a.example").await.unwrap(), None);
    let error = session.check_agent("default").await.unwrap_err();
    assert_eq!(error.to_string(), "the client does not serve /moby.sshforward.v1.SSH/CheckAgent");
}

#[tokio::test]
async fn credentials_and_tokens() {
    use crate::supervisor::auth::Form;
    let (_, session, _wire) = session(&Client::default());
    let given = session.credentials("a.example").await.unwrap().unwrap();
    assert_eq!((given.username.as_str(), given.secret.as_str(), given.form), ("me", "password", Form::Password));
    assert_eq!(session.credentials("b.example").await.unwrap().unwrap().form, Form::IdentityToken);
    assert_eq!(session.credentials("c.example").await.unwrap(), None);
    let request = TokenRequest { scopes: vec!["x".into(), "y".into()], ..TokenRequest::default() };
    let token = session.fetch_token(request).await.unwrap().unwrap();
    assert_eq!((token.token.as_str(), token.good_for), ("x y", Duration::from_secs(300)));
    assert!(!format!("{token:?}").contains("x y"));
    assert_eq!(session.token_authority("a.example", b"salt").await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn agents() {
    let client = Client::default();
    let (_, session, _wire) = session(&client);
    session.check_agent("default").await.unwrap();
    assert_eq!(session.check_agent("other").await.unwrap_err().kind(), ErrorKind::NotFound);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let agents_of = session.clone();
    let served = tokio::spawn(async move { serve_agent(agents_of, "default", listener).await });
    for text in ["abc", "defgh"] {
        let mut socket = UnixStream::connect(&path).await.unwrap();
        socket.write_all(text.as_bytes()).await.unwrap();
        socket.shutdown().await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, text.chars().rev().collect::<String>());
    }
    assert_eq!(client.said("buildkit.ssh.id"), ["default", "default"]);
    session.hang_up();
    served.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn uploads() {
    let client = Client::default();
    let (_, session, _wire) = session(&client);
    let pieces: Vec<Bytes> = session.upload("buildkit-session", "/x/y").await.unwrap().try_collect().await.unwrap();
    assert_eq!(pieces.concat(), b"one two");
    assert_eq!(
        (client.said("urlhost"), client.said("urlpath")),
        (vec!["buildkit-session".into()], vec!["/x/y".into()])
    );
}

#[tokio::test]
async fn files() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(from.path().join("d")).unwrap();
    for file in ["a", "b", "d/c", "ü"] {
        fs::write(from.path().join(file), file).unwrap();
    }
    let client = Client { context: from.path().to_owned(), ..Client::default() };
    let (_, session, _wire) = session(&client);
    let open = || std::os::fd::OwnedFd::from(fs::File::open(to.path()).unwrap());
    let wanted = FilesRequest { name: "context".into(), exclude: vec!["b".into()], ..FilesRequest::default() };
    let received = session.files(&wanted, open().into(), Options::default()).await.unwrap();
    assert_eq!((received.entries, received.fetched), (4, 3));
    assert_eq!(fs::read_to_string(to.path().join("d/c")).unwrap(), "d/c");
    assert!(!to.path().join("b").exists());
    assert_eq!((client.said("dir-name"), client.said("exclude-patterns")), (vec!["context".into()], vec!["b".into()]));
    let again = Options { known: received.index, ..Options::default() };
    assert_eq!(session.files(&wanted, open().into(), again).await.unwrap().fetched, 0);
    let other = FilesRequest { name: "x".into(), ..FilesRequest::default() };
    let error = session.files(&other, open().into(), Options::default()).await.unwrap_err();
    assert_eq!(chain(&error), "transfer x: no access allowed to dir \"x\"");
    assert!(error.is_not_served());
    // What goes wrong there is told here.
    let missing = Client { context: "/nonexistent".into(), ..Client::default() };
    let (stream, _other) = serve(&missing);
    let session = Sessions::new().attach(announced("s2", METHODS), stream).unwrap();
    let error = chain(&session.files(&wanted, open().into(), Options::default()).await.unwrap_err());
    assert!(error.contains("transfer context: the sender: read /nonexistent"), "{error}");
}

#[tokio::test]
async fn files_for_the_client() {
    let client = Client::default();
    let (_, session, _wire) = session(&client);
    let metadata = BTreeMap::from([("containerimage.digest".to_owned(), "sha256:x".to_owned())]);
    let body = vec![7; 3_000_000];
    let pieces = futures_util::stream::iter([Ok(Bytes::from(body.clone())), Ok(Bytes::from_static(b"end"))]);
    session.export_file(2, &metadata, pieces).await.unwrap();
    let exported = client.exported.lock().unwrap().take().unwrap().unwrap();
    assert_eq!((exported.len(), &exported[3_000_000..]), (3_000_003, &b"end"[..]));
    assert_eq!(client.said("buildkit-attachable-exporter-id"), ["2"]);
    assert_eq!(client.said("exporter-md-containerimage.digest"), ["sha256:x"]);
    // One that breaks off must not look whole.
    let broken = futures_util::stream::iter([Ok(Bytes::from_static(b"begin")), Err(io::Error::other("disk"))]);
    let error = session.export_file(0, &BTreeMap::new(), broken).await.unwrap_err();
    assert_eq!(chain(&error), "send the output to the client: disk");
    // The call is reset. Go's servers see an error; tonic's take that for an end like any other (hence a client of ours trusts
    // a file only once its build is done).
}

/// A client that takes folders: the same method, other messages.
#[derive(Debug, Clone)]
struct TakesFolders(PathBuf);

impl tonic::server::NamedService for TakesFolders {
    const NAME: &'static str = "moby.filesync.v1.FileSend";
}

impl tonic::server::StreamingService<Packet> for TakesFolders {
    type Response = Packet;
    type ResponseStream = Answers<Packet>;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answers<Packet>>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Packet>>) -> Self::Future {
        let folder = std::os::fd::OwnedFd::from(fs::File::open(&self.0).unwrap());
        Box::pin(async move {
            let (outgoing, answers) = mpsc::channel(64);
            let (sender, incoming) = mpsc::channel(64);
            let mut packets = request.into_inner();
            tokio::spawn(async move {
                while let Ok(Some(packet)) = packets.message().await {
                    if sender.send(packet).await.is_err() {
                        return;
                    }
                }
            });
            tokio::spawn(async move { receive(folder, incoming, outgoing, Options::default()).await });
            Ok(Response::new(Box::pin(ReceiverStream::new(answers).map(Ok)) as Answers<Packet>))
        })
    }
}

impl tower::Service<axum::http::Request<tonic::body::Body>> for TakesFolders {
    type Response = axum::http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: axum::http::Request<tonic::body::Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::<Packet, Packet>::default();
            Ok(tonic::server::Grpc::new(codec).streaming(service, request).await)
        })
    }
}

#[tokio::test]
async fn folders_for_the_client() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(from.path().join("d")).unwrap();
    fs::write(from.path().join("d/f"), "content").unwrap();
    fs::write(to.path().join("mine"), "stays").unwrap();
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let service = TakesFolders(to.path().to_owned());
    tokio::spawn(async move {
        let incoming = futures_util::stream::iter([Ok::<_, io::Error>(theirs)]).chain(futures_util::stream::pending());
        let _ = Server::builder().add_service(service).serve_with_incoming(incoming).await;
    });
    let session = Sessions::new().attach(announced("s1", METHODS), ours).unwrap();
    session.export_folder(0, &BTreeMap::new(), from.path(), &Filter::default()).await.unwrap();
    assert_eq!(fs::read_to_string(to.path().join("d/f")).unwrap(), "content");
    assert_eq!(fs::read_to_string(to.path().join("mine")).unwrap(), "stays");
    let error =
        session.export_folder(0, &BTreeMap::new(), &from.path().join("x"), &Filter::default()).await.unwrap_err();
    assert!(chain(&error).contains("No such file"), "{}", chain(&error));
}

#[tokio::test]
async fn sessions_come_and_go() {
    let sessions = Sessions::new();
    let waiting = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.find("build:late").await.map(|session| session.id().to_owned()) }
    });
    let error = sessions.find_within("never", Duration::from_millis(20)).await.unwrap_err();
    assert_eq!(error.to_string(), "no active session for never: the client has gone, or never came");
    let (stream, wire) = serve(&Client::default());
    let session = sessions.attach(announced("late", METHODS), stream).unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), "late");
    assert_eq!((session.name(), session.shared_key()), ("web", "shared"));
    let (second, _) = tokio::io::duplex(64);
    assert_eq!(
        sessions.attach(announced("late", METHODS), second).unwrap_err().to_string(),
        "session late already exists"
    );
    // A call that nobody answers ends with the client.
    let asking = tokio::spawn({
        let session = session.clone();
        async move { session.secret("never").await }
    });
    session.secret("token").await.unwrap();
    wire.abort();
    let error = tokio::time::timeout(Duration::from_secs(5), asking).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    tokio::time::timeout(Duration::from_secs(5), session.ended()).await.unwrap();
    assert!(sessions.now("late").is_none());
    assert_eq!(session.secret("token").await.unwrap_err().kind(), ErrorKind::Unavailable);
    // The id is free.
    let (stream, _wire) = serve(&Client::default());
    let again = sessions.attach(announced("late", METHODS), stream).unwrap();
    again.secret("token").await.unwrap();
    again.hang_up();
    assert!(sessions.now("late").is_none());
    while sessions.count() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn any_of_a_builds_sessions() {
    let sessions = Sessions::new();
    let (one, _a) = serve(&Client::default());
    let (two, _b) = serve(&Client::default());
    sessions.attach(announced("one", &[]), one).unwrap();
    sessions.attach(announced("two", METHODS), two).unwrap();
    let ids = ["one".to_owned(), "two".to_owned()];
    let ask = async |session: Session, id: &'static str| session.secret(id).await;
    assert_eq!(sessions.any(&ids, "secrets", |session| ask(session, "token")).await.unwrap(), b"abc");
    let error = sessions.any(&ids, "secrets", |session| ask(session, "none")).await.unwrap_err();
    assert_eq!(error.to_string(), "secret none: not found");
    let error = sessions.any(&[], "secrets", |session| ask(session, "none")).await.unwrap_err();
    assert_eq!(error.to_string(), "the build has no session: its client can't be asked for secrets");
}

#[test]
fn what_clients_announce() {
    let read = |headers: &[(&'static str, &str)]| {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        Announced::from_headers(&map)
    };
    assert!(read(&[]).unwrap_err().to_string().contains("X-Docker-Expose-Session-Uuid is missing"));
    for id in ["../x", "a/b", "", "a b", &"x".repeat(129)] {
        assert!(read(&[("x-docker-expose-session-uuid", id)]).is_err(), "{id}");
    }
    assert!(read(&[("x-docker-expose-session-uuid", "a-b_c.9")]).is_ok());
    let long = "x".repeat(2000);
    let large = [("x-docker-expose-session-uuid", "a"), ("x-docker-expose-session-sharedkey", long.as_str())];
    assert!(read(&large).is_err());
}
