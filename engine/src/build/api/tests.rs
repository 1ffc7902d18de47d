//! Builds as clients see them, on a backend that only pretends.

use crate::build::{
    Wanted,
    api::grpc,
    running::Build,
    testing::{Fake, Files, builder, source},
    *,
};
use hyper_util::rt::TokioIo;
use proto::moby::buildkit::v1::{
    BuildHistoryRequest, DiskUsageRequest, Exporter, InfoRequest, ListWorkersRequest, SolveRequest, StatusRequest,
    control_client::ControlClient,
    frontend::{
        self as gateway, NewContainerRequest, PingRequest, ReadDirRequest, ReadFileRequest, ReturnRequest,
        StatFileRequest, llb_bridge_client::LlbBridgeClient, result,
    },
};
use std::sync::Mutex as StdMutex;
use tokio::io::DuplexStream;
use tokio_stream::StreamExt as _;
use tonic::{
    Code, Request,
    transport::{Channel, Endpoint, Uri},
};

/// A client of the builder's, over a connection as `/grpc` hands it over.
async fn connect(builder: &Arc<Builder>) -> Channel {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    tokio::spawn(grpc::serve(TokioIo::new(theirs), grpc::services(builder.clone())));
    let stream: StdMutex<Option<DuplexStream>> = StdMutex::new(Some(ours));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.lock().unwrap().take();
        async move { stream.map(TokioIo::new).ok_or_else(|| std::io::Error::other("only once")) }
    });
    Endpoint::from_static("http://builder").connect_with_connector(connector).await.unwrap()
}

fn for_build<T>(message: T, id: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("buildkit-controlapi-buildid", id.parse().unwrap());
    request
}

fn fake() -> Fake {
    let files: Files = [("a".to_owned(), b"text".to_vec())].into();
    Fake { sources: [("local://x".to_owned(), files)].into(), ..Fake::default() }
}

fn image() -> Exporter {
    Exporter { r#type: "moby".to_owned(), ..Exporter::default() }
}

#[tokio::test]
async fn a_graph_is_built_and_told_of_to_those_who_come_late() {
    let backend = Arc::new(fake());
    let builder = builder(backend.clone());
    let mut control = ControlClient::new(connect(&builder).await);
    let request = SolveRequest {
        r#ref: "b1".into(),
        definition: Some(source("local://x")),
        exporters: vec![image()],
        ..SolveRequest::default()
    };
    let response = control.solve(request).await.unwrap().into_inner();
    assert!(response.exporter_response["containerimage.digest"].starts_with("sha256:"));
    assert_eq!(backend.exported.lock().unwrap().len(), 1);
    let told = control.status(StatusRequest { r#ref: "b1".into() }).await.unwrap().into_inner();
    let told: Vec<_> = told.map(Result::unwrap).collect().await;
    assert!(told.iter().flat_map(|message| &message.vertexes).any(|vertex| vertex.completed.is_some()));
    let request = BuildHistoryRequest { early_exit: true, ..BuildHistoryRequest::default() };
    let events: Vec<_> = control.listen_build_history(request).await.unwrap().into_inner().collect().await;
    let record = events[0].as_ref().unwrap().record.as_ref().unwrap();
    assert_eq!((record.r#ref.as_str(), record.num_total_steps), ("b1", 1));
    assert_eq!(control.status(StatusRequest { r#ref: "none".into() }).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn failures_say_where() {
    let builder = builder(Arc::new(fake()));
    let mut control = ControlClient::new(connect(&builder).await);
    let mut definition = source("local://missing");
    let digest = frontend::last(&definition).unwrap();
    let info = pb::SourceInfo { filename: "Dockerfile".into(), data: b"COPY x y\n".into(), ..Default::default() };
    let location = pb::Location { source_index: 0, ranges: vec![error::lines(1, 1)] };
    let locations = [(digest, pb::Locations { locations: vec![location] })].into();
    definition.source = Some(pb::Source { locations, infos: vec![info] });
    let request = SolveRequest { r#ref: "b".into(), definition: Some(definition), ..SolveRequest::default() };
    let status = control.solve(request).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "local://missing isn't there"));
    let details = <proto::google::rpc::Status as prost::Message>::decode(status.details()).unwrap().details;
    let urls: Vec<&str> = details.iter().map(|detail| detail.type_url.rsplit('/').next().unwrap()).collect();
    assert_eq!(urls, ["errdefs.Vertex+json", "errdefs.Source+json"]);
}

#[tokio::test]
async fn what_is_refused_at_once() {
    let backend = Arc::new(fake());
    let builder = builder(backend.clone());
    let solve = |change: fn(&mut SolveRequest)| {
        let mut request =
            SolveRequest { r#ref: "b".into(), definition: Some(source("local://x")), ..SolveRequest::default() };
        change(&mut request);
        let builder = builder.clone();
        async move { ControlClient::new(connect(&builder).await).solve(request).await.unwrap_err() }
    };
    for (change, code) in [
        ((|r| r.r#ref = "../../x".into()) as fn(&mut SolveRequest), Code::InvalidArgument),
        (|r| r.r#ref = String::new(), Code::InvalidArgument),
        (|r| r.entitlements = vec!["security.insecure".into()], Code::PermissionDenied),
        (|r| r.entitlements = vec!["everything".into()], Code::InvalidArgument),
        (|r| r.frontend = "dockerfile.v0".into(), Code::InvalidArgument),
        (|r| (r.frontend, r.definition) = ("nope".into(), None), Code::NotFound),
        (|r| (r.frontend, r.definition) = ("gateway.v0".into(), None), Code::InvalidArgument),
        (|r| r.exporters = vec![Exporter::default()], Code::InvalidArgument),
        (|r| r.enable_session_exporter = true, Code::Unimplemented),
        (
            |r| {
                let rules = vec![proto::moby::buildkit::v1::sourcepolicy::Rule::default()];
                r.source_policy = Some(proto::moby::buildkit::v1::sourcepolicy::Policy { version: 1, rules });
            },
            Code::Unimplemented,
        ),
    ] {
        let status = solve(change).await;
        assert_eq!(status.code(), code, "{status:?}");
    }
    assert!(backend.solved.lock().unwrap().is_empty());
    assert!(builder.running().is_empty());
}

#[tokio::test]
async fn a_client_that_is_the_frontend() {
    let backend = Arc::new(fake());
    let builder = builder(backend.clone());
    let channel = connect(&builder).await;
    let mut control = ControlClient::new(channel.clone());
    let building = tokio::spawn(async move {
        let exporters = vec![image()];
        control.solve(SolveRequest { r#ref: "g".into(), exporters, ..SolveRequest::default() }).await
    });
    let mut bridge = LlbBridgeClient::new(channel);
    let pong = bridge.ping(for_build(PingRequest {}, "g")).await.unwrap().into_inner();
    assert!(pong.llb_caps.iter().any(|cap| cap.id == "exec.mount.secret" && cap.enabled));
    assert!(!pong.frontend_api_caps.iter().any(|cap| cap.id.starts_with("gateway.exec")));
    assert_eq!(pong.workers[0].id, "w1");
    let request = gateway::SolveRequest {
        definition: Some(source("local://x")),
        allow_result_return: true,
        allow_result_array_ref: true,
        ..gateway::SolveRequest::default()
    };
    let solved = bridge.solve(for_build(request, "g")).await.unwrap().into_inner().result.unwrap();
    let Some(result::Result::Ref(reference)) = solved.result.clone() else { panic!("{solved:?}") };
    // Nothing is made before somebody wants to see it.
    assert!(backend.solved.lock().unwrap().is_empty());
    let id = reference.id;
    let read = |path: &str, length| ReadFileRequest {
        r#ref: id.clone(),
        file_path: path.into(),
        range: Some(gateway::FileRange { offset: 1, length }),
        ..ReadFileRequest::default()
    };
    assert_eq!(bridge.read_file(for_build(read("a", 2), "g")).await.unwrap().into_inner().data, b"ex");
    assert_eq!(bridge.read_file(for_build(read("nope", 0), "g")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(bridge.read_file(for_build(read("a", -1), "g")).await.unwrap_err().code(), Code::InvalidArgument);
    let stat = StatFileRequest { r#ref: id.clone(), path: "a".into(), ..Default::default() };
    assert_eq!(bridge.stat_file(for_build(stat, "g")).await.unwrap().into_inner().stat.unwrap().size, 4);
    let list = ReadDirRequest { r#ref: id.clone(), dir_path: "/".into(), ..Default::default() };
    assert_eq!(bridge.read_dir(for_build(list, "g")).await.unwrap().into_inner().entries.len(), 1);
    let refused = bridge.new_container(for_build(NewContainerRequest::default(), "g")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert_eq!(bridge.ping(PingRequest {}).await.unwrap_err().code(), Code::InvalidArgument);
    let back = ReturnRequest { result: Some(solved), error: None };
    bridge.r#return(for_build(back, "g")).await.unwrap();
    let response = building.await.unwrap().unwrap().into_inner();
    assert_eq!(response.exporter_response["trees"], "1");
    assert_eq!(backend.solved.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_frontends_failure_is_the_builds() {
    let builder = builder(Arc::new(fake()));
    let channel = connect(&builder).await;
    let mut control = ControlClient::new(channel.clone());
    let building =
        tokio::spawn(async move { control.solve(SolveRequest { r#ref: "g".into(), ..SolveRequest::default() }).await });
    let mut bridge = LlbBridgeClient::new(channel);
    let error =
        proto::google::rpc::Status { code: Code::InvalidArgument as i32, message: "bad".into(), details: vec![] };
    bridge.r#return(for_build(ReturnRequest { result: None, error: Some(error) }, "g")).await.unwrap();
    let status = building.await.unwrap().unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "bad"));
}

#[tokio::test]
async fn a_build_ends_with_its_client_and_by_request() {
    let backend = Arc::new(Fake { gate: Some(tokio::sync::Semaphore::new(0)), ..fake() });
    let builder = builder(backend);
    let begin = |id: &str| {
        let wanted = Wanted { id: id.to_owned(), definition: Some(source("local://x")), ..Wanted::default() };
        builder.begin(wanted).unwrap()
    };
    let begun = begin("one");
    let twice = builder.begin(Wanted { id: "one".to_owned(), ..Wanted::default() }).unwrap_err();
    assert_eq!((twice.kind, twice.message.as_str()), (ErrorKind::AlreadyExists, "job ID one exists"));
    let running = tokio::spawn(begun.run());
    assert!(builder.cancel("one"));
    assert_eq!(running.await.unwrap().unwrap_err().kind, ErrorKind::Cancelled);
    assert!(!builder.cancel("one"));
    // The client hangs up.
    let running = tokio::spawn(begin("two").run());
    let build = builder.build("two").await.unwrap();
    running.abort();
    let mut cancelled = build.cancelled.subscribe();
    cancelled.wait_for(|cancelled| *cancelled).await.unwrap();
    assert!(builder.running().is_empty());
    let mut told = build.progress.listen();
    while told.next().await.is_some() {}
}

#[tokio::test]
async fn what_the_builder_tells_of_itself() {
    let builder = builder(Arc::new(fake()));
    let mut control = ControlClient::new(connect(&builder).await);
    let workers = control.list_workers(ListWorkersRequest::default()).await.unwrap().into_inner().record;
    assert!(!workers[0].platforms.is_empty());
    let none = control.list_workers(ListWorkersRequest { filter: vec!["id==other".into()] }).await.unwrap();
    assert!(none.into_inner().record.is_empty());
    let info = control.info(InfoRequest {}).await.unwrap().into_inner();
    assert!(info.buildkit_version.unwrap().version.starts_with('v'));
    let usage = control.disk_usage(DiskUsageRequest::default()).await.unwrap().into_inner().record;
    assert_eq!(usage[0].id, "r1");
    let pruned: Vec<_> = control
        .prune(PruneRequest { all: true, ..PruneRequest::default() })
        .await
        .unwrap()
        .into_inner()
        .collect()
        .await;
    assert_eq!(pruned.len(), 1);
}

/// The Dockerfile as `files` of the folders have it.
async fn entry(locals: &[(&str, &[(&str, &str)])], options: &[(&str, &str)]) -> Result<(String, String), BuildError> {
    let mut backend = Fake::default();
    for (identifier, files) in locals {
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec())).collect();
        backend.sources.insert((*identifier).to_owned(), files);
    }
    let build = Arc::new(Build::new("b".into(), vec!["s".into()], vec![]));
    let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    frontend::dockerfile(&options, &HashMap::new(), &build, &backend).await
}

#[tokio::test]
async fn dockerfiles_from_everywhere() {
    let local: &[(&str, &[(&str, &str)])] =
        &[("local://dockerfile", &[("Dockerfile", "1"), ("sub/x", "2")]), ("local://context", &[])];
    assert_eq!(entry(local, &[]).await.unwrap(), ("Dockerfile".into(), "1".into()));
    assert_eq!(entry(local, &[("filename", "sub/x")]).await.unwrap().1, "2");
    let missing = entry(local, &[("filename", "y")]).await.unwrap_err();
    assert_eq!(missing.message, "failed to read dockerfile: open y: no such file or directory");
    let lower: &[(&str, &[(&str, &str)])] = &[("local://dockerfile", &[("dockerfile", "3")])];
    assert_eq!(entry(lower, &[]).await.unwrap().1, "3");
    let git: &[(&str, &[(&str, &str)])] = &[("git://h/a.git#main", &[("Dockerfile", "4")])];
    assert_eq!(entry(git, &[("context", "https://h/a.git#main")]).await.unwrap().1, "4");
    let url: &[(&str, &[(&str, &str)])] = &[("https://h/file", &[("context", "FROM scratch\n")])];
    assert_eq!(
        entry(url, &[("context", "https://h/file")]).await.unwrap(),
        ("context".into(), "FROM scratch\n".into())
    );
    let archive: &[(&str, &[(&str, &str)])] = &[("https://h/t.tgz", &[("context", "BZh9"), ("Dockerfile", "5")])];
    assert_eq!(entry(archive, &[("context", "https://h/t.tgz")]).await.unwrap().1, "5");
    let both: &[(&str, &[(&str, &str)])] =
        &[("git://h/a.git", &[("Dockerfile", "remote")]), ("local://dockerfile", &[("Dockerfile", "local")])];
    let options = [("context", "https://h/a.git"), ("dockerfilekey", "dockerfile")];
    assert_eq!(entry(both, &options).await.unwrap().1, "local");
    let large = "x".repeat((2 << 20) + 1);
    let large: &[(&str, &[(&str, &str)])] = &[("local://dockerfile", &[("Dockerfile", &large)])];
    assert!(entry(large, &[]).await.unwrap_err().message.contains("is larger than 2097152 bytes"));
}
