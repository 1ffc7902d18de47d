//! Sessions of a client that others have made: docker 20.10 with BuildKit's client in it, as Debian has it.

use super::*;
use crate::http::ApiError;
use axum::{
    Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use filesync::{index::Index, receive::Options};
use proto::kind::chain;
use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Stdio,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    process::Command,
};

/// What the builds of this test do: they ask the session for all that there is.
#[derive(Clone)]
struct Builder {
    sessions: Sessions,
    folder: PathBuf,
    known: Arc<std::sync::Mutex<Index>>,
    found: Arc<std::sync::Mutex<Vec<String>>>,
}

impl Builder {
    async fn build(&self, id: &str) -> Result<(), SessionError> {
        let session = self.sessions.find(id).await?;
        let note = |text: String| self.found.lock().unwrap().push(text);
        note(format!("shared key {}", !session.shared_key().is_empty()));
        let open = || OwnedFd::from(fs::File::open(&self.folder).unwrap());
        let wanted = FilesRequest {
            name: "context".into(),
            exclude: vec!["*.log".into(), "!keep.log".into()],
            ..FilesRequest::default()
        };
        let known = std::mem::take(&mut *self.known.lock().unwrap());
        let options = Options { known, digests: true, ..Options::default() };
        let received = session.files(&wanted, open().into(), options).await?;
        note(format!("{} entries, {} fetched, {} removed", received.entries, received.fetched, received.removed));
        *self.known.lock().unwrap() = received.index;
        let nowhere = FilesRequest { name: "elsewhere".into(), ..FilesRequest::default() };
        let error = session.files(&nowhere, open().into(), Options::default()).await.unwrap_err();
        note(format!("{:?} {}", error.kind(), chain(&error)));
        note(String::from_utf8(session.secret("mine").await?).unwrap());
        note(chain(&session.secret("none").await.unwrap_err()));
        note(format!("{:?}", session.credentials("registry.example").await?.map(|c| (c.username, c.secret))));
        session.check_agent("default").await?;
        let (ours, theirs) = UnixStream::pair().unwrap();
        let forward = session.forward_agent("default", theirs);
        let speak = async move {
            let mut ours = ours;
            // SSH_AGENTC_REQUEST_IDENTITIES; the client speaks for the agent itself.
            ours.write_all(&[0, 0, 0, 1, 11]).await.unwrap();
            let mut answer = [0; 5];
            ours.read_exact(&mut answer).await.unwrap();
            answer
        };
        let answer = tokio::select! {
            answer = speak => answer,
            result = forward => panic!("the agent's connection ended: {result:?}"),
        };
        note(format!("agent's answer {}", answer[4]));
        Ok(())
    }
}

async fn serve(State(builder): State<Builder>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    if path.ends_with("/_ping") {
        return [("API-Version", "1.41"), ("OSType", "linux"), ("Builder-Version", "2")].into_response();
    }
    if path.ends_with("/session") {
        return take_over(&builder.sessions, request).unwrap_or_else(IntoResponse::into_response);
    }
    if path.ends_with("/build") {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let id = query.split('&').find_map(|pair| pair.strip_prefix("session=")).unwrap_or_default();
        let answer = match builder.build(id).await {
            Ok(()) => r#"{"id":"moby.image.id","aux":{"ID":"sha256:0"}}"#.to_owned(),
            Err(error) => {
                serde_json::json!({"error": chain(&error), "errorDetail": {"message": chain(&error)}}).to_string()
            }
        };
        return answer.into_response();
    }
    ApiError::not_found(format!("{path} is not part of the test")).into_response()
}

async fn docker() -> Option<PathBuf> {
    for path in ["/usr/bin/docker", "/usr/local/bin/docker"] {
        let version = Command::new(path).arg("--version").output().await;
        // The last one that has BuildKit's client built in.
        if version.is_ok_and(|version| String::from_utf8_lossy(&version.stdout).contains("version 20.10.")) {
            return Some(path.into());
        }
    }
    None
}

/// An agent without keys.
async fn agent(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    loop {
        let Ok((mut socket, _)) = listener.accept().await else { return };
        tokio::spawn(async move {
            let mut request = [0; 5];
            while socket.read_exact(&mut request).await.is_ok() {
                // SSH_AGENT_IDENTITIES_ANSWER: none.
                let _ = socket.write_all(&[0, 0, 0, 5, 12, 0, 0, 0, 0]).await;
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debians_docker_serves_all_that_it_is_asked_for() {
    let Some(docker) = docker().await else {
        eprintln!("skipped: docker 20.10 is not installed");
        return;
    };
    let folder = tempfile::Builder::new().prefix("berth-docker-").tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["context/sub", "got", "home"] {
        fs::create_dir_all(at(name)).unwrap();
    }
    fs::write(at("context/Dockerfile"), "FROM scratch\n").unwrap();
    fs::write(at("context/x.log"), "x").unwrap();
    fs::write(at("context/keep.log"), "kept").unwrap();
    fs::write(at("context/sub/large"), vec![7; 1_500_000]).unwrap();
    fs::write(at("context/empty"), "").unwrap();
    fs::set_permissions(at("context/sub/large"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(at("context/sub/large"), at("context/sub/more")).unwrap();
    symlink("../../outside", at("context/link")).unwrap();
    nix::unistd::mkfifo(&at("context/pipe"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    for i in 0..300 {
        fs::write(at(&format!("context/sub/f{i}")), format!("content {i}")).unwrap();
    }
    fs::write(at("secret"), "s3cret").unwrap();
    let config = r#"{"auths":{"registry.example":{"auth":"bWU6d29yZA=="}}}"#;
    fs::write(at("home/config.json"), config).unwrap();
    tokio::spawn({
        let path = at("agent");
        async move { agent(&path).await }
    });
    let builder =
        Builder { sessions: Sessions::new(), folder: at("got"), known: Arc::default(), found: Arc::default() };
    let listener = UnixListener::bind(at("sock")).unwrap();
    let router = Router::new().fallback(serve).with_state(builder.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let build = async || {
        builder.found.lock().unwrap().clear();
        let run = Command::new(&docker)
            .arg("--host")
            .arg(format!("unix://{}", at("sock").display()))
            .args(["--config", at("home").to_str().unwrap(), "build"])
            .args(["--secret", &format!("id=mine,src={}", at("secret").display())])
            .args(["--ssh", &format!("default={}", at("agent").display())])
            .arg(at("context"))
            .env("DOCKER_BUILDKIT", "1")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let run = tokio::time::timeout(Duration::from_secs(60), run).await.expect("the client's end").unwrap();
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(run.status.success(), "{said}\n{:?}", builder.found.lock().unwrap());
        builder.found.lock().unwrap().clone()
    };
    let expected = |files: &str| {
        [
            "shared key true",
            files,
            "NotFound transfer elsewhere: no access allowed to dir \"elsewhere\"",
            "s3cret",
            "secret none: not found",
            "Some((\"me\", \"word\"))",
            "agent's answer 12",
        ]
        .map(str::to_owned)
    };
    // Three hundred and eight others; of these the folder, both links, the pipe and the empty one have no content to ask for.
    assert_eq!(build().await, expected("308 entries, 303 fetched, 0 removed"));
    assert!(!at("got/x.log").exists());
    assert_eq!(fs::read_to_string(at("got/keep.log")).unwrap(), "kept");
    for (name, mode) in [("sub/large", 0o104_755), ("sub/f7", 0o100_644), ("pipe", 0o010_600), ("sub", 0o040_755)] {
        let (there, here) = (
            fs::symlink_metadata(at("context").join(name)).unwrap(),
            fs::symlink_metadata(at("got").join(name)).unwrap(),
        );
        assert_eq!((here.mode(), here.uid(), here.gid()), (mode, 0, 0), "{name}");
        assert_eq!((here.mtime(), here.mtime_nsec()), (there.mtime(), there.mtime_nsec()), "{name}");
    }
    assert_eq!(fs::read(at("got/sub/large")).unwrap(), vec![7; 1_500_000]);
    let inode = |name: &str| fs::metadata(at(name)).unwrap().ino();
    assert_eq!(inode("got/sub/large"), inode("got/sub/more"));
    assert_eq!(fs::read_link(at("got/link")).unwrap(), Path::new("../../outside"));
    assert_eq!(build().await, expected("308 entries, 0 fetched, 0 removed"));
    fs::write(at("context/sub/f7"), "other").unwrap();
    fs::remove_file(at("context/sub/f8")).unwrap();
    assert_eq!(build().await, expected("307 entries, 1 fetched, 1 removed"));
    assert_eq!(fs::read_to_string(at("got/sub/f7")).unwrap(), "other");
    let left = tokio::time::timeout(Duration::from_secs(5), async {
        while builder.sessions.count() > 0 {
            tokio::task::yield_now().await;
        }
    });
    left.await.expect("sessions end with their clients");
}
