//! Starts supervisors in folders of their own, and speaks to them as the engine does.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use prost_types::Any;
use proto::{
    berth::content::v1::{VerifiedObject, VerifyRequest, VerifyTotals, store_client::StoreClient, verify_event},
    containerd::{
        services::{
            content::v1::{
                ListContentRequest, ReadContentRequest, WriteAction, WriteContentRequest, content_client::ContentClient,
            },
            images::v1::{
                CreateImageRequest, DeleteImageRequest, Image, ListImagesRequest, images_client::ImagesClient,
            },
            leases::v1::{CreateRequest, leases_client::LeasesClient},
            snapshots::v1::{Info, ListSnapshotsRequest, snapshots_client::SnapshotsClient},
            streaming::v1::{StreamInit, streaming_client::StreamingClient},
            transfer::v1::{TransferOptions, TransferRequest, transfer_client::TransferClient},
        },
        types::{
            Platform,
            transfer::{
                AuthRequest, AuthResponse, Data, ImageExportStream, ImageImportStream, ImageStore, OciRegistry,
                Progress, RegistryResolver, UnpackConfiguration, WindowUpdate,
            },
        },
    },
    digest::Digest,
    typeurl,
};
use tokio::{net::UnixStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status, Streaming,
    transport::{Channel, Endpoint},
};

pub(crate) const NAMESPACE: &str = "berth";

/// A supervisor of its own; ended and removed when dropped.
pub(crate) struct Supervisor {
    pub(crate) root: PathBuf,
    child: Child,
    // Removed last.
    _dir: Option<tempfile::TempDir>,
}

impl Supervisor {
    pub(crate) fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("berth-store-").tempdir().unwrap();
        let root = dir.path().to_owned();
        Self::start_in(root, Some(dir))
    }

    /// With a configuration file.
    pub(crate) fn start_with(config: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("berth-store-").tempdir().unwrap();
        let root = dir.path().to_owned();
        std::fs::write(root.join("config.toml"), config.replace("ROOT", root.to_str().unwrap())).unwrap();
        Self::start_in(root, Some(dir))
    }

    pub(crate) fn start_in(root: PathBuf, dir: Option<tempfile::TempDir>) -> Self {
        let child = spawn(&root);
        let supervisor = Self { root, child, _dir: dir };
        supervisor.wait_until_up();
        supervisor
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.root.join("run/supervisor.sock")
    }

    fn wait_until_up(&self) {
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            assert!(began.elapsed() < Duration::from_secs(60), "not up: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it at this instant and starts it again on the same folders.
    pub(crate) fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = spawn(&self.root);
        self.wait_until_up();
    }

    /// Ends it at this instant, and leaves it so.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it on the same folders, after `kill`.
    pub(crate) fn start_again(&mut self) {
        self.child = spawn(&self.root);
        self.wait_until_up();
    }

    /// Starts it on the same folders where it can't begin; what it says.
    pub(crate) fn refuses_to_start(&self) -> String {
        let output = on(&self.root).output().unwrap();
        assert!(!output.status.success(), "it began");
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        words.lines().last().unwrap_or_default().to_owned()
    }

    /// Runs `check`, with these further arguments: whether all is well, and what it said.
    pub(crate) fn check(&self, args: &[&str]) -> (bool, String) {
        let output = on(&self.root).arg("check").args(args).output().unwrap();
        let words = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&words).into_owned())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join("data/supervisor").join(path)
    }

    /// Names in a folder of the data root.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(path)).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != "l");
        names.sort();
        names
    }

    /// Runs containerd's client on the socket, and gives what it printed.
    pub(crate) fn ctr(&self, args: &[&str]) -> Result<String, String> {
        let output = Command::new("ctr").arg("-a").arg(self.socket()).args(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    pub(crate) async fn client(&self) -> Client {
        let socket = self.socket();
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://supervisor");
        Client { channel: endpoint.connect_with_connector(connect).await.unwrap() }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("supervisor's log:\n{}", self.log());
        }
    }
}

fn on(root: &Path) -> Command {
    // Figures are taken with an optimized one.
    let program = std::env::var_os("BERTH_SUPERVISOR").unwrap_or(env!("CARGO_BIN_EXE_berth-supervisor").into());
    let mut command = Command::new(program);
    command.args(["--data-root".as_ref(), root.join("data").as_os_str()]);
    command.args(["--run-root".as_ref(), root.join("run").as_os_str()]);
    // What a test wants besides, as a configuration file.
    if root.join("config.toml").exists() {
        command.arg("--config").arg(root.join("config.toml"));
    }
    // And as variables of the environment.
    let variables = std::fs::read_to_string(root.join("env")).unwrap_or_default();
    command.envs(variables.lines().filter_map(|line| line.split_once('=')));
    command.stdin(Stdio::null());
    command
}

fn spawn(root: &Path) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(root.join("log")).unwrap();
    on(root).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

/// A client in the engine's namespace.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) channel: Channel,
}

/// Puts a request into the engine's namespace.
pub(crate) fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", NAMESPACE.parse().unwrap());
    request
}

/// An open stream of the Streaming service.
pub(crate) struct Stream {
    pub(crate) send: mpsc::Sender<Any>,
    pub(crate) receive: Streaming<Any>,
}

pub(crate) fn unpacking() -> ImageStore {
    ImageStore {
        unpacks: vec![UnpackConfiguration {
            platform: Some(Platform { os: "linux".into(), architecture: "amd64".into(), variant: String::new() }),
            snapshotter: "overlayfs".into(),
        }],
        ..Default::default()
    }
}

impl Client {
    pub(crate) async fn stream(&self, id: &str) -> Stream {
        let (send, messages) = mpsc::channel(8);
        send.send(typeurl::pack(&StreamInit { id: id.into() })).await.unwrap();
        let mut client = StreamingClient::new(self.channel.clone());
        let mut receive = client.stream(request(ReceiverStream::new(messages))).await.unwrap().into_inner();
        let ready = receive.message().await.unwrap().unwrap();
        assert_eq!(ready.type_url, "google.protobuf.Empty");
        Stream { send, receive }
    }

    async fn transfer(&self, source: Any, destination: &ImageStore) -> (Result<(), Status>, Vec<Progress>) {
        self.transfer_to(source, typeurl::pack(destination)).await
    }

    async fn transfer_to(&self, source: Any, destination: Any) -> (Result<(), Status>, Vec<Progress>) {
        let mut stream = self.stream("progress").await;
        let message = TransferRequest {
            source: Some(source),
            destination: Some(destination),
            options: Some(TransferOptions { progress_stream: "progress".into() }),
        };
        let mut client = TransferClient::new(self.channel.clone());
        let transfer = tokio::spawn(async move { client.transfer(request(message)).await });
        let mut told = Vec::new();
        while let Ok(Some(any)) = stream.receive.message().await {
            told.push(typeurl::unpack::<Progress>(&any).unwrap().unwrap());
        }
        (transfer.await.unwrap().map(|_| ()), told)
    }

    /// Sends an archive as fast as the windows allow.
    pub(crate) async fn import(&self, archive: Vec<u8>, to: &ImageStore) -> (Result<(), Status>, Vec<Progress>) {
        let Stream { send, mut receive } = self.stream("archive").await;
        tokio::spawn(async move {
            let (mut window, mut rest) = (0_usize, archive.as_slice());
            while !rest.is_empty() {
                while window == 0 {
                    let Ok(Some(any)) = receive.message().await else { return };
                    window += typeurl::unpack::<WindowUpdate>(&any).unwrap().unwrap().update as usize;
                }
                let n = rest.len().min(window).min(1 << 20);
                window -= n;
                if send.send(typeurl::pack(&Data { data: rest[..n].to_vec() })).await.is_err() {
                    return;
                }
                rest = &rest[n..];
            }
            // The end of the requests says that this was all; giving up the answers as well would cancel the stream.
            drop(send);
            while let Ok(Some(_)) = receive.message().await {}
        });
        let source = ImageImportStream { stream: "archive".into(), ..Default::default() };
        self.transfer(typeurl::pack(&source), to).await
    }

    pub(crate) async fn pull(
        &self,
        reference: &str,
        login: Option<(&str, &str)>,
        to: &ImageStore,
    ) -> (Result<(), Status>, Vec<Progress>) {
        let source = self.registry(reference, login.map(|(user, secret)| ("", user, secret))).await;
        self.transfer(typeurl::pack(&source), to).await
    }

    /// Pushes an image of the store to a name in a registry.
    pub(crate) async fn push_as(
        &self,
        name: &str,
        reference: &str,
        login: Option<(&str, &str, &str)>,
    ) -> (Result<(), Status>, Vec<Progress>) {
        let from = ImageStore { name: name.into(), ..Default::default() };
        let to = self.registry(reference, login).await;
        self.transfer_to(typeurl::pack(&from), typeurl::pack(&to)).await
    }

    /// Pulls without progress; ends with its future.
    pub(crate) async fn pull_silently(&self, reference: &str) -> Result<(), Status> {
        let message = TransferRequest {
            source: Some(typeurl::pack(&OciRegistry { reference: reference.into(), resolver: None })),
            destination: Some(typeurl::pack(&unpacking())),
            options: None,
        };
        TransferClient::new(self.channel.clone()).transfer(request(message)).await.map(|_| ())
    }

    /// Pushes without progress, so that several can go on at once.
    pub(crate) async fn push_silently(&self, name: &str, reference: &str) -> Result<(), Status> {
        let message = TransferRequest {
            source: Some(typeurl::pack(&ImageStore { name: name.into(), ..Default::default() })),
            destination: Some(typeurl::pack(&OciRegistry { reference: reference.into(), resolver: None })),
            options: None,
        };
        TransferClient::new(self.channel.clone()).transfer(request(message)).await.map(|_| ())
    }

    // A repository, and credentials for one host (empty: for whoever asks).
    async fn registry(&self, reference: &str, login: Option<(&str, &str, &str)>) -> OciRegistry {
        let mut resolver = RegistryResolver::default();
        if let Some((host, user, secret)) = login {
            let host = host.to_owned();
            let (username, secret) = (user.to_owned(), secret.to_owned());
            let mut stream = self.stream("auth").await;
            resolver.auth_stream = "auth".into();
            tokio::spawn(async move {
                while let Ok(Some(any)) = stream.receive.message().await {
                    let asked = typeurl::unpack::<AuthRequest>(&any).unwrap().unwrap();
                    assert!(!asked.host.is_empty() && !asked.wwwauthenticate.is_empty());
                    let mut answer = AuthResponse::default();
                    if host.is_empty() || host == asked.host {
                        answer.auth_type = 1;
                        (answer.secret, answer.username) = (secret.clone(), username.clone());
                    }
                    let _ = stream.send.send(typeurl::pack(&answer)).await;
                }
            });
        }
        OciRegistry { reference: reference.into(), resolver: Some(resolver) }
    }

    pub(crate) async fn export(&self, names: &[&str]) -> Result<Vec<u8>, Status> {
        self.export_of(names, ImageExportStream::default()).await
    }

    /// Writes a blob, with labels that keep other blobs.
    pub(crate) async fn write(&self, bytes: &[u8], references: &[(String, String)], lease: Option<&str>) {
        let label = |(name, value): &(String, String)| (format!("containerd.io/gc.ref.content.{name}"), value.clone());
        let message = WriteContentRequest {
            action: WriteAction::Commit.into(),
            r#ref: format!("test-{}", Digest::of(bytes)),
            total: bytes.len() as i64,
            expected: Digest::of(bytes).to_string(),
            offset: 0,
            data: bytes.to_vec(),
            labels: references.iter().map(label).collect(),
        };
        let messages = tokio_stream::iter([message]);
        let mut write = request(messages);
        if let Some(lease) = lease {
            write.metadata_mut().insert("containerd-lease", lease.parse().unwrap());
        }
        let mut answers = ContentClient::new(self.channel.clone()).write(write).await.unwrap().into_inner();
        while answers.message().await.unwrap().is_some() {}
    }

    /// Makes a lease that keeps until it is deleted.
    pub(crate) async fn lease(&self, id: &str) {
        let message = CreateRequest { id: id.into(), ..Default::default() };
        LeasesClient::new(self.channel.clone()).create(request(message)).await.unwrap();
    }

    /// Gives a name to what a descriptor says.
    pub(crate) async fn name_image(&self, name: &str, descriptor: &serde_json::Value) {
        let text = |key: &str| descriptor[key].as_str().unwrap().to_owned();
        let target = proto::containerd::types::Descriptor {
            media_type: text("mediaType"),
            digest: text("digest"),
            size: descriptor["size"].as_i64().unwrap(),
            annotations: Default::default(),
        };
        let image = Image { name: name.into(), target: Some(target), ..Default::default() };
        let message = CreateImageRequest { image: Some(image) };
        ImagesClient::new(self.channel.clone()).create(request(message)).await.unwrap();
    }

    /// Pushes an image under its own name.
    pub(crate) async fn push(&self, name: &str) -> Result<(), Status> {
        let from = ImageStore { name: name.into(), ..Default::default() };
        let to = OciRegistry { reference: name.into(), resolver: None };
        let message = TransferRequest {
            source: Some(typeurl::pack(&from)),
            destination: Some(typeurl::pack(&to)),
            options: None,
        };
        TransferClient::new(self.channel.clone()).transfer(request(message)).await.map(drop)
    }

    /// Gives an image a further name.
    pub(crate) async fn tag(&self, name: &str, new: &str) {
        let image = |name: &str| typeurl::pack(&ImageStore { name: name.into(), ..Default::default() });
        let message = TransferRequest { source: Some(image(name)), destination: Some(image(new)), options: None };
        TransferClient::new(self.channel.clone()).transfer(request(message)).await.unwrap();
    }

    /// Exports with these options.
    pub(crate) async fn export_of(&self, names: &[&str], to: ImageExportStream) -> Result<Vec<u8>, Status> {
        let Stream { send, mut receive } = self.stream("out").await;
        let from = ImageStore { export_images: names.iter().map(|n| (*n).into()).collect(), ..Default::default() };
        let message = TransferRequest {
            source: Some(typeurl::pack(&from)),
            destination: Some(typeurl::pack(&ImageExportStream { stream: "out".into(), ..to })),
            options: None,
        };
        let mut client = TransferClient::new(self.channel.clone());
        let transfer = tokio::spawn(async move { client.transfer(request(message)).await });
        let mut archive = Vec::new();
        // Small windows, so that they matter.
        send.send(typeurl::pack(&WindowUpdate { update: 70_000 })).await.unwrap();
        while let Ok(Some(any)) = receive.message().await {
            let data = typeurl::unpack::<Data>(&any).unwrap().unwrap().data;
            let _ = send.send(typeurl::pack(&WindowUpdate { update: data.len() as i32 })).await;
            archive.extend_from_slice(&data);
        }
        transfer.await.unwrap().map(|_| archive)
    }

    pub(crate) async fn images(&self) -> Vec<Image> {
        let mut client = ImagesClient::new(self.channel.clone());
        client.list(request(ListImagesRequest::default())).await.unwrap().into_inner().images
    }

    pub(crate) async fn remove_image(&self, name: &str) -> Result<(), Status> {
        let mut client = ImagesClient::new(self.channel.clone());
        client.delete(request(DeleteImageRequest { name: name.into(), sync: true, target: None })).await.map(|_| ())
    }

    pub(crate) async fn snapshots(&self) -> Vec<Info> {
        let list = ListSnapshotsRequest { snapshotter: "overlayfs".into(), filters: Vec::new() };
        let mut stream = SnapshotsClient::new(self.channel.clone()).list(request(list)).await.unwrap().into_inner();
        let mut found = Vec::new();
        while let Some(page) = stream.message().await.unwrap() {
            found.extend(page.info);
        }
        found
    }

    /// Verifies the namespace, or these images: what was found by name, and the totals.
    pub(crate) async fn verify(&self, images: &[&str]) -> Result<(Vec<VerifiedObject>, VerifyTotals), Status> {
        let ask = VerifyRequest { images: images.iter().map(|name| (*name).to_owned()).collect() };
        let mut stream = StoreClient::new(self.channel.clone()).verify(request(ask)).await?.into_inner();
        let (mut objects, mut plan, mut totals) = (Vec::new(), None, None);
        while let Some(event) = stream.message().await? {
            assert!(totals.is_none(), "nothing comes behind the totals");
            match event.event.unwrap() {
                verify_event::Event::Plan(first) => assert!(plan.replace(first).is_none()),
                verify_event::Event::Object(object) => objects.push(object),
                verify_event::Event::Totals(last) => totals = Some(last),
            }
        }
        Ok((objects, totals.unwrap()))
    }

    /// Verifies the namespace and finds nothing wrong.
    pub(crate) async fn assert_sound(&self) -> VerifyTotals {
        let (objects, totals) = self.verify(&[]).await.unwrap();
        let faulty: Vec<_> = objects.iter().filter(|object| !object.problems.is_empty()).collect();
        assert!(faulty.is_empty() && totals.faulty == 0, "{faulty:#?}");
        totals
    }

    /// The bytes of a blob.
    pub(crate) async fn blob(&self, digest: &str) -> Vec<u8> {
        let ask = ReadContentRequest { digest: digest.into(), offset: 0, size: 0 };
        let mut stream = ContentClient::new(self.channel.clone()).read(request(ask)).await.unwrap().into_inner();
        let mut bytes = Vec::new();
        while let Some(piece) = stream.message().await.unwrap() {
            bytes.extend(piece.data);
        }
        bytes
    }

    pub(crate) async fn blobs(&self) -> Vec<String> {
        let list = ListContentRequest::default();
        let mut stream = ContentClient::new(self.channel.clone()).list(request(list)).await.unwrap().into_inner();
        let mut found = Vec::new();
        while let Some(page) = stream.message().await.unwrap() {
            found.extend(page.info.into_iter().map(|info| info.digest));
        }
        found
    }
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < Duration::from_secs(60), "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
