//! `build` by BuildKit's protocol against a builder in this process: what it is asked, what it asks, and what is printed.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[allow(dead_code, reason = "part of it is for the other tests")]
mod fake;

use fake::Run;
use filesync::receive::{Options, receive};
use http_body_util::{Empty, Full};
use hyper::{Request as HttpRequest, Response as HttpResponse, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use prost::Message;
use proto::fsutil::types::Packet;
use proto::moby::buildkit::secrets::v1::{GetSecretRequest, secrets_client::SecretsClient};
use proto::moby::buildkit::v1::control_server::{Control, ControlServer};
use proto::moby::buildkit::v1::frontend::llb_bridge_server::{LlbBridge, LlbBridgeServer};
use proto::moby::buildkit::v1::{self as bk, frontend as fe};
use proto::moby::filesync::v1::file_sync_client::FileSyncClient;
use serde_json::Value;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming, service::Routes};

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The builder: what it was asked, and sessions of its clients.
#[derive(Default)]
struct State {
    solved: Mutex<Vec<bk::SolveRequest>>,
    asked: Mutex<Vec<fe::SolveRequest>>,
    sessions: Mutex<HashMap<String, Channel>>,
    headers: Mutex<Vec<(String, String)>>,
    progress: Mutex<HashMap<String, mpsc::Receiver<Result<bk::StatusResponse, Status>>>>,
    /// Builds that are waiting, and those whose client has gone.
    waiting: watch::Sender<usize>,
    gone: watch::Sender<usize>,
    returned: watch::Sender<usize>,
}

#[derive(Clone)]
struct Builder(Arc<State>);

impl Builder {
    async fn session(&self, id: &str) -> Result<Channel, Status> {
        for _ in 0..1000 {
            if let Some(channel) = self.0.sessions.lock().unwrap().get(id) {
                return Ok(channel.clone());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err(Status::not_found(format!("no active session for {id}")))
    }

    /// The Dockerfile of a build, fetched as BuildKit fetches it.
    async fn dockerfile(&self, session: &str, attrs: &HashMap<String, String>) -> Result<String, Status> {
        let channel = self.session(session).await?;
        let folder = tempfile::tempdir()?;
        let (to, requests) = mpsc::channel::<Packet>(16);
        let mut request = Request::new(ReceiverStream::new(requests));
        request.metadata_mut().insert("dir-name", "dockerfile".parse().unwrap());
        request.metadata_mut().insert("include-patterns", attrs["filename"].parse().unwrap());
        let mut packets = FileSyncClient::new(channel).diff_copy(request).await?.into_inner();
        let (sender, incoming) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Some(Ok(packet)) = packets.next().await {
                sender.send(packet).await.ok();
            }
        });
        let root = std::os::fd::OwnedFd::from(std::fs::File::open(folder.path())?);
        let received = receive(root, incoming, to, Options::default()).await;
        received.map_err(|error| Status::unknown(error.to_string()))?;
        Ok(std::fs::read_to_string(folder.path().join(&attrs["filename"]))?)
    }
}

/// Counts on drop: a future that is given up.
struct Gone(watch::Sender<usize>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count += 1);
    }
}

fn vertex(name: &str, completed: bool, error: &str) -> bk::StatusResponse {
    let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let vertex = bk::Vertex {
        digest: format!("sha256:{name}"),
        name: name.to_owned(),
        started: at(100),
        completed: if completed { at(101) } else { None },
        error: error.to_owned(),
        ..bk::Vertex::default()
    };
    bk::StatusResponse { vertexes: vec![vertex], ..bk::StatusResponse::default() }
}

fn log(name: &str, text: &str) -> bk::StatusResponse {
    let timestamp = Some(prost_types::Timestamp { seconds: 100, nanos: 500_000_000 });
    let log = bk::VertexLog { vertex: format!("sha256:{name}"), timestamp, stream: 1, msg: text.into() };
    bk::StatusResponse { logs: vec![log], ..bk::StatusResponse::default() }
}

#[tonic::async_trait]
impl Control for Builder {
    async fn solve(&self, request: Request<bk::SolveRequest>) -> Result<Response<bk::SolveResponse>, Status> {
        let request = request.into_inner();
        self.0.solved.lock().unwrap().push(request.clone());
        if request.frontend.is_empty() {
            // The client is the frontend: until it returns.
            self.0.returned.subscribe().wait_for(|count| *count > 0).await.unwrap();
            return Ok(Response::new(Default::default()));
        }
        let (progress, receiver) = mpsc::channel(64);
        self.0.progress.lock().unwrap().insert(request.r#ref.clone(), receiver);
        let text = self.dockerfile(&request.session, &request.frontend_attrs).await?;
        let say = async |response| progress.send(Ok(response)).await.unwrap();
        for line in text.lines() {
            match line.split_once(' ').unwrap_or((line, "")) {
                ("RUN", command) => {
                    say(vertex(command, false, "")).await;
                    say(log(command, "working\n")).await;
                    say(vertex(command, true, "")).await;
                }
                ("SECRET", id) => {
                    let channel = self.session(&request.session).await?;
                    let secret = GetSecretRequest { id: id.to_owned(), ..GetSecretRequest::default() };
                    let data = SecretsClient::new(channel).get_secret(secret).await?.into_inner().data;
                    say(vertex("secret", false, "")).await;
                    say(log("secret", &format!("{} bytes\n", data.len()))).await;
                    say(vertex("secret", true, "")).await;
                }
                ("WARN", short) => {
                    say(vertex("lint", true, "")).await;
                    let warning = bk::VertexWarning {
                        vertex: "sha256:lint".into(),
                        short: short.as_bytes().to_vec(),
                        ..bk::VertexWarning::default()
                    };
                    say(bk::StatusResponse { warnings: vec![warning], ..bk::StatusResponse::default() }).await;
                }
                ("FAIL", _) => {
                    say(vertex("[2/2] FAIL", false, "")).await;
                    say(log("[2/2] FAIL", "last words\n")).await;
                    say(vertex("[2/2] FAIL", true, "it failed")).await;
                    use base64::{Engine as _, engine::general_purpose::STANDARD};
                    let value = serde_json::json!({
                        "info": { "filename": "Dockerfile", "data": STANDARD.encode(&text) },
                        "ranges": [{ "start": { "line": 2 }, "end": { "line": 2 } }],
                    });
                    let detail = prost_types::Any {
                        type_url: "github.com/moby/buildkit/errdefs.Source+json".into(),
                        value: value.to_string().into_bytes(),
                    };
                    let status = proto::google::rpc::Status { code: 2, message: "m".into(), details: vec![detail] };
                    return Err(Status::with_details(Code::Unknown, "it failed", status.encode_to_vec().into()));
                }
                ("WAIT", _) => {
                    say(vertex("waiting", false, "")).await;
                    let _gone = Gone(self.0.gone.clone());
                    self.0.waiting.send_modify(|count| *count += 1);
                    std::future::pending::<()>().await;
                }
                _ => {}
            }
        }
        let exporter_response = [
            ("containerimage.digest".to_owned(), "sha256:manifest".to_owned()),
            ("containerimage.config.digest".to_owned(), "sha256:config".to_owned()),
        ];
        Ok(Response::new(bk::SolveResponse { exporter_response: exporter_response.into() }))
    }

    type StatusStream = Boxed<bk::StatusResponse>;

    async fn status(&self, request: Request<bk::StatusRequest>) -> Result<Response<Self::StatusStream>, Status> {
        let id = request.into_inner().r#ref;
        for _ in 0..1000 {
            if let Some(stream) = self.0.progress.lock().unwrap().remove(&id) {
                return Ok(Response::new(Box::pin(ReceiverStream::new(stream))));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err(Status::not_found("no such job"))
    }

    async fn list_workers(
        &self,
        _: Request<bk::ListWorkersRequest>,
    ) -> Result<Response<bk::ListWorkersResponse>, Status> {
        let label = ("org.mobyproject.buildkit.worker.moby.host-gateway-ip".to_owned(), "10.9.8.7".to_owned());
        let worker = bk::types::WorkerRecord { labels: [label].into(), ..bk::types::WorkerRecord::default() };
        Ok(Response::new(bk::ListWorkersResponse { record: vec![worker] }))
    }

    async fn disk_usage(&self, _: Request<bk::DiskUsageRequest>) -> Result<Response<bk::DiskUsageResponse>, Status> {
        let record = bk::UsageRecord { id: "one".into(), size: 1500, ..bk::UsageRecord::default() };
        Ok(Response::new(bk::DiskUsageResponse { record: vec![record] }))
    }

    async fn info(&self, _: Request<bk::InfoRequest>) -> Result<Response<bk::InfoResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    type PruneStream = Boxed<bk::UsageRecord>;

    async fn prune(&self, _: Request<bk::PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        Err(Status::unimplemented(""))
    }

    type SessionStream = Boxed<bk::BytesMessage>;

    async fn session(&self, _: Request<Streaming<bk::BytesMessage>>) -> Result<Response<Self::SessionStream>, Status> {
        Err(Status::unimplemented(""))
    }

    type ListenBuildHistoryStream = Boxed<bk::BuildHistoryEvent>;

    async fn listen_build_history(
        &self,
        _: Request<bk::BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn update_build_history(
        &self,
        _: Request<bk::UpdateBuildHistoryRequest>,
    ) -> Result<Response<bk::UpdateBuildHistoryResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// The calls of a frontend that nobody makes here.
macro_rules! unasked {
    ($($name:ident: $request:ident -> $response:ident,)*) => { $(
        fn $name<'a, 'b>(
            &'a self,
            _: Request<fe::$request>,
        ) -> Pin<Box<dyn Future<Output = Result<Response<fe::$response>, Status>> + Send + 'b>>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async { Err(Status::unimplemented("")) })
        }
    )* };
}

#[tonic::async_trait]
impl LlbBridge for Builder {
    async fn ping(&self, request: Request<fe::PingRequest>) -> Result<Response<fe::PongResponse>, Status> {
        assert!(request.metadata().contains_key("buildkit-controlapi-buildid"));
        Ok(Response::new(Default::default()))
    }

    async fn solve(&self, request: Request<fe::SolveRequest>) -> Result<Response<fe::SolveResponse>, Status> {
        let request = request.into_inner();
        self.0.asked.lock().unwrap().push(request.clone());
        if request.frontend_opt["requestid"] != "frontend.lint" {
            return Err(Status::unknown("unsupported request"));
        }
        let metadata = [
            ("result.json".to_owned(), br#"{"warnings":[{"ruleName":"R"}]}"#.to_vec()),
            ("result.txt".to_owned(), b"\nWARNING: R\n".to_vec()),
        ];
        let result = fe::Result { metadata: metadata.into(), ..fe::Result::default() };
        Ok(Response::new(fe::SolveResponse { result: Some(result), ..fe::SolveResponse::default() }))
    }

    async fn r#return(&self, _: Request<fe::ReturnRequest>) -> Result<Response<fe::ReturnResponse>, Status> {
        self.0.returned.send_modify(|count| *count += 1);
        Ok(Response::new(Default::default()))
    }

    type ExecProcessStream = Boxed<fe::ExecMessage>;

    async fn exec_process(
        &self,
        _: Request<Streaming<fe::ExecMessage>>,
    ) -> Result<Response<Self::ExecProcessStream>, Status> {
        Err(Status::unimplemented(""))
    }

    unasked! {
        resolve_image_config: ResolveImageConfigRequest -> ResolveImageConfigResponse,
        resolve_source_meta: ResolveSourceMetaRequest -> ResolveSourceMetaResponse,
        read_file: ReadFileRequest -> ReadFileResponse,
        read_dir: ReadDirRequest -> ReadDirResponse,
        stat_file: StatFileRequest -> StatFileResponse,
        evaluate: EvaluateRequest -> EvaluateResponse,
        inputs: InputsRequest -> InputsResponse,
        new_container: NewContainerRequest -> NewContainerResponse,
        release_container: ReleaseContainerRequest -> ReleaseContainerResponse,
        read_file_container: ReadFileRequest -> ReadFileResponse,
        read_dir_container: ReadDirRequest -> ReadDirResponse,
        stat_file_container: StatFileRequest -> StatFileResponse,
        warn: WarnRequest -> WarnResponse,
    }
}

/// An engine with such a builder, on a socket; it ends with the test's runtime.
struct Engine {
    builder: Builder,
    dir: tempfile::TempDir,
}

impl Engine {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("sock")).unwrap();
        let builder = Builder(Arc::default());
        let served = builder.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let builder = served.clone();
                let service = service_fn(move |request| answer(builder.clone(), request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades(),
                );
            }
        });
        Self { builder, dir }
    }

    fn context(&self, dockerfile: &str) -> String {
        let path = self.dir.path().join("context");
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("Dockerfile"), dockerfile).unwrap();
        path.display().to_string()
    }

    fn command(&self, words: &[&str]) -> std::process::Command {
        let mut command = fake::berth(words);
        command.env("BERTH_HOST", format!("unix://{}", self.dir.path().join("sock").display()));
        command.env_remove("DOCKER_BUILDKIT").env_remove("BUILDKIT_PROGRESS").env_remove("SOURCE_DATE_EPOCH");
        command
    }

    async fn run(&self, words: &[&str]) -> Run {
        let command = self.command(words);
        tokio::task::spawn_blocking(move || fake::finish(command, b"")).await.unwrap()
    }

    fn solved(&self) -> bk::SolveRequest {
        self.builder.0.solved.lock().unwrap().pop().unwrap()
    }
}

async fn answer(
    builder: Builder,
    mut request: HttpRequest<Incoming>,
) -> Result<HttpResponse<http_body_util::Either<Empty<Bytes>, Full<Bytes>>>, hyper::http::Error> {
    use http_body_util::Either::{Left, Right};
    let path = request.uri().path().to_owned();
    if path == "/grpc" || path == "/session" {
        let headers = request.headers().clone();
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let io = upgrade.await.unwrap();
            if path == "/grpc" {
                let mut routes = Routes::builder();
                routes.add_service(ControlServer::new(builder.clone())).add_service(LlbBridgeServer::new(builder));
                let service = TowerToHyperService::new(routes.routes());
                // The client leaves as it likes.
                let _ =
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
                return;
            }
            for (name, value) in &headers {
                builder.0.headers.lock().unwrap().push((name.to_string(), value.to_str().unwrap().to_owned()));
            }
            let id = headers["x-docker-expose-session-uuid"].to_str().unwrap().to_owned();
            let io = Mutex::new(Some(io));
            let connector = tower::service_fn(move |_: hyper::Uri| {
                let io = io.lock().unwrap().take();
                async { io.ok_or_else(|| std::io::Error::other("one connection")) }
            });
            let channel = Endpoint::from_static("http://c").connect_with_connector(connector).await.unwrap();
            builder.0.sessions.lock().unwrap().insert(id, channel);
        });
        let switched = HttpResponse::builder().status(101).header("connection", "Upgrade").header("upgrade", "h2c");
        return switched.body(Left(Empty::new()));
    }
    let text = match path.as_str() {
        path if path.ends_with("/info") => r#"{"DriverStatus":[["driver-type","io.containerd.snapshotter.v1"]]}"#,
        _ => "OK",
    };
    HttpResponse::builder().header("api-version", "1.51").body(Right(Full::from(text)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_and_what_is_said_of_it() {
    let engine = Engine::start();
    let context = engine.context("RUN one\nSECRET s\nWARN Rule: careful (line 3)\n");
    let (iid, facts) = (format!("{context}/../iid"), format!("{context}/../facts"));
    let secret = format!("id=s,src={context}/Dockerfile");
    let words = [
        "build",
        "-t",
        "a:1",
        "--secret",
        &secret,
        "--build-arg",
        "V=1",
        "--add-host",
        "h:host-gateway",
        "--cache-from",
        "c",
        "--iidfile",
        &iid,
        "--metadata-file",
        &facts,
        &context,
    ];
    let run = engine.run(&words).await;
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), ""), "{run:?}");
    assert_eq!(
        run.stderr,
        "#1 one\n#1 0.500 working\n#1 DONE 1.0s\n\n#2 secret\n#2 0.500 45 bytes\n#2 DONE 1.0s\n\n#3 lint\n#3 DONE 1.0s\n\n \
         1 warning found (use --debug to expand):\n - Rule: careful (line 3)\n"
    );
    assert_eq!(std::fs::read_to_string(iid).unwrap(), "sha256:config");
    let facts: Value = serde_json::from_str(&std::fs::read_to_string(facts).unwrap()).unwrap();
    assert_eq!(facts["containerimage.digest"], "sha256:manifest");
    let solved = engine.solved();
    assert_eq!((solved.frontend.as_str(), solved.exporter_deprecated.as_str()), ("dockerfile.v0", "moby"));
    assert_eq!(solved.exporters[0].attrs["name"], "a:1");
    for (key, value) in [("filename", "Dockerfile"), ("build-arg:V", "1"), ("add-hosts", "h=10.9.8.7")] {
        assert_eq!(solved.frontend_attrs[key], value, "{key}");
    }
    assert_eq!(solved.cache.unwrap().imports[0].attrs["ref"], "c");
    let headers = engine.builder.0.headers.lock().unwrap().clone();
    let of = |key: &str| headers.iter().filter(|(name, _)| name == key).map(|(_, v)| v.clone()).collect::<Vec<_>>();
    assert_eq!(of("x-docker-expose-session-sharedkey"), ["context"]);
    assert!(of("x-docker-expose-session-grpc-method").contains(&"/moby.filesync.v1.FileSync/DiffCopy".to_owned()));
    let quiet = engine
        .run(&["build", "-q", "--push", "-t", "r/a", "-o", "type=oci,dest=/dev/null", &context, "--secret", &secret])
        .await;
    assert_eq!(
        (quiet.code, quiet.stdout.as_str(), quiet.stderr.as_str()),
        (Some(0), "sha256:config\n", ""),
        "{quiet:?}"
    );
    let kinds: Vec<String> = engine.solved().exporters.into_iter().map(|exporter| exporter.r#type).collect();
    assert_eq!(kinds, ["oci", "image"], "an engine that keeps images as they are pushes them itself");
    let du = engine.run(&["builder", "du"]).await;
    assert!(du.stdout.contains("one") && du.stdout.ends_with("Total:\t\t1.50kB\n"), "{du:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_shown_with_its_place() {
    let engine = Engine::start();
    let context = engine.context("RUN one\nFAIL now\nRUN two\n");
    let run = engine.run(&["build", &context]).await;
    assert_eq!(run.code, Some(1), "{run:?}");
    let end = "#2 [2/2] FAIL\n#2 0.500 last words\n#2 ERROR: it failed\n------\n > [2/2] FAIL:\n0.500 last words\n------\n\
        Dockerfile:2\n--------------------\n   1 |     RUN one\n   2 | >>> FAIL now\n   3 |     RUN two\n   4 |     \n--------------------\n\
        ERROR: failed to build: failed to solve: it failed\n";
    assert!(run.stderr.ends_with(end), "{}", run.stderr);
    let raw = engine.run(&["build", "--progress=rawjson", &context]).await;
    let lines: Vec<Value> = raw.stderr.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(lines[0]["vertexes"][0]["name"], "one", "{raw:?}");
    let secret = engine.context("SECRET none\n");
    let missing = engine.run(&["build", &secret]).await;
    assert!(missing.stderr.contains("secret none: not found"), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_is_asked() {
    let engine = Engine::start();
    let context = engine.context("RUN one\n");
    let run = engine.run(&["build", "--check", &context]).await;
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (Some(1), "Check complete, 1 warning has been found!\n\nWARNING: R\n"),
        "{run:?}"
    );
    let solved = engine.solved();
    assert!(solved.frontend.is_empty() && solved.internal && solved.exporters.is_empty());
    let asked = engine.builder.0.asked.lock().unwrap().pop().unwrap();
    assert_eq!(asked.frontend_opt["frontend.caps"], "moby.buildkit.frontend.subrequests+forward");
    let refused = engine.run(&["build", "--call=outline", &context]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("the builder doesn't answer frontend.outline"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_interrupted_gives_the_build_up() {
    let engine = Engine::start();
    let context = engine.context("WAIT\n");
    let mut command = engine.command(&["build", &context]);
    let child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let state = &engine.builder.0;
    state.waiting.subscribe().wait_for(|count| *count == 1).await.unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.ends_with("ERROR: failed to build: failed to solve: Canceled: context canceled\n"), "{stderr}");
    let gone = state.gone.subscribe().wait_for(|count| *count == 1).await.map(|count| *count);
    assert_eq!(gone.unwrap(), 1, "the builder has heard of it");
}
