//! Requests that nobody would write, of every call of both services: bytes, and requests of kubelets with something bent. Each is
//! answered, or refused with a code, within bounds; none meets a bug; nothing is left.

mod wire;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use clap::Parser;
use prost::{
    Message,
    bytes::{Buf, BufMut},
};
use proto::{
    image_ref::ImageRef,
    runtime::v1::{
        self as cri, image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer,
    },
};
use tonic::{
    Code, Request, Status,
    body::Body,
    client::{Grpc, GrpcService},
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
};

use self::wire::{Dice, bend};
use super::{ImageService, Node, Pods, RuntimeService};
use crate::{
    api::limited,
    app::Draining,
    config::{Args, Config},
    containers::Containers,
    events::EventBus,
    store::Stores,
    tasks::Tasks,
};

/// How long a request may take; one waits for a plugin at most.
const LIMIT: Duration = Duration::from_secs(20);
/// As a plugin of CNI: some of its pods get an address, some a refusal, some garbage.
const PLUGIN: &str = r#"#!/bin/sh
cat >/dev/null
[ "$CNI_COMMAND" = VERSION ] && { echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}'; exit; }
[ "$CNI_COMMAND" = ADD ] || exit 0
case $CNI_CONTAINERID in
*[0-9]) echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"10.1.2.3/24","interface":0}]}' ;;
*[ab]) echo '{"cniVersion":"1.0.0","code":7,"msg":"no room"}'; exit 1 ;;
*c) kill -SEGV $$ ;;
*) echo garbage ;;
esac
"#;

/// Messages as they come.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}

/// Both services over stores of their own, without a shim.
struct Services {
    runtime: RuntimeServiceServer<RuntimeService>,
    images: ImageServiceServer<ImageService>,
    folder: tempfile::TempDir,
}

impl Services {
    async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("net.d")).unwrap();
        fs::create_dir_all(at("bin")).unwrap();
        testing::executable(&at("bin/odd"), PLUGIN);
        let list = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"odd","capabilities":{"portMappings":true,"bandwidth":true}}]}"#;
        fs::write(at("net.d/10-pods.conflist"), list).unwrap();
        let text = format!(
            "data-root = {:?}\nrun-root = {:?}\n[runtimes]\n'io.containerd.berth.v1' = '/nonexistent/shim'\n\
             [cri]\ncni-conf-dir = {:?}\ncni-bin-dirs = [{:?}]\n",
            at("d"),
            at("r"),
            at("net.d"),
            at("bin")
        );
        fs::write(at("supervisor.toml"), text).unwrap();
        let args = ["berth-supervisor", "--config", at("supervisor.toml").to_str().unwrap()].map(str::to_owned);
        let config: Config = Args::try_parse_from(args).unwrap().into_config().unwrap();
        fs::create_dir_all(config.run()).unwrap();
        fs::create_dir_all(config.data()).unwrap();
        let stores = Stores::open(&config.data_root, &config.snapshots, Arc::new(|_, _, _| {})).unwrap();
        let events = Arc::new(EventBus::new());
        let containers = Arc::new(Containers::new(stores.db.clone(), events.clone()));
        let (begin, draining) = Draining::new();
        // It never begins.
        std::mem::forget(begin);
        let tasks = Tasks::new(&config, containers.clone(), stores.content.clone(), events, draining.clone());
        let node = Arc::new(Node::new(&config, &stores, tasks.clone()));
        let layers = config.snapshots.folder(&config.data().join("snapshots"), stores.snapshots.default_name());
        let registries = Arc::new(config.registries.clone());
        let images = ImageService::new(stores.clone(), node.clone(), registries, layers.clone());
        let pods = Pods::open(&config, node, (stores, containers, tasks), draining).await.unwrap();
        Self {
            runtime: limited!(RuntimeServiceServer::new(RuntimeService::new(pods, layers))),
            images: limited!(ImageServiceServer::new(images)),
            folder,
        }
    }

    async fn ask(&self, path: &str, request: Vec<u8>) -> Result<Option<Vec<u8>>, Status> {
        if path.starts_with("/runtime.v1.ImageService/") {
            ask(self.images.clone(), path, request).await
        } else {
            ask(self.runtime.clone(), path, request).await
        }
    }

    async fn typed<T: Message + Default>(&self, call: &str, request: impl Message) -> Result<T, Status> {
        let answer = self.ask(&format!("/runtime.v1.RuntimeService/{call}"), request.encode_to_vec()).await?;
        Ok(T::decode(&*answer.unwrap_or_default()).unwrap())
    }

    async fn pods(&self) -> Vec<String> {
        let all: cri::ListPodSandboxResponse =
            self.typed("ListPodSandbox", cri::ListPodSandboxRequest::default()).await.unwrap();
        all.items.into_iter().map(|pod| pod.id).collect()
    }
}

/// The first message of an answer; none from those that tell what happens, later.
async fn ask<S>(service: S, path: &str, request: Vec<u8>) -> Result<Option<Vec<u8>>, Status>
where
    S: GrpcService<Body>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::ResponseBody: tonic::codegen::Body<Data = prost::bytes::Bytes> + Send + 'static,
    <S::ResponseBody as tonic::codegen::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let path: PathAndQuery = path.parse().unwrap();
    let waits = path.as_str().ends_with("/GetContainerEvents");
    let all = async {
        let mut grpc = Grpc::new(service).max_decoding_message_size(64 << 20);
        assert!(grpc.ready().await.is_ok());
        let mut stream = grpc.server_streaming(Request::new(request), path.clone(), Raw).await?.into_inner();
        if waits { Ok(None) } else { stream.message().await }
    };
    match tokio::time::timeout(LIMIT, all).await {
        Ok(answer) => answer,
        Err(_) => panic!("{path}: no answer within {} s", LIMIT.as_secs()),
    }
}

/// Every call, as the interface itself lists them.
fn calls() -> Vec<String> {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/api/runtime/v1/cri.proto")).unwrap();
    let (mut service, mut found) = ("", Vec::new());
    for words in text.lines().map(|line| line.split([' ', '(']).filter(|word| !word.is_empty()).collect::<Vec<_>>()) {
        match words[..] {
            ["service", name, ..] => service = name,
            ["rpc", call, ..] => found.push(format!("/runtime.v1.{service}/{call}")),
            _ => {}
        }
    }
    found
}

fn owned(pairs: &[(&str, &str)]) -> std::collections::HashMap<String, String> {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// A pod with something in every field.
fn pod(dice: &mut Dice, folder: &Path) -> cri::PodSandboxConfig {
    let network = if dice.roll(3) == 0 { cri::NamespaceMode::Pod } else { cri::NamespaceMode::Node };
    let options = cri::NamespaceOption {
        network: network.into(),
        pid: cri::NamespaceMode::Container.into(),
        ..Default::default()
    };
    let context = cri::LinuxSandboxSecurityContext {
        namespace_options: Some(options),
        run_as_user: Some(cri::Int64Value { value: 5 }),
        supplemental_groups: vec![1, 2],
        seccomp: Some(cri::SecurityProfile::default()),
        ..Default::default()
    };
    let resources = cri::LinuxContainerResources { cpu_shares: 2, cpu_quota: 100_000, ..Default::default() };
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: format!("pod{}", dice.roll(4)),
            uid: "3f2a".into(),
            namespace: "default".into(),
            attempt: dice.roll(2) as u32,
        }),
        hostname: "web-0".into(),
        log_directory: folder.join("logs").display().to_string(),
        dns_config: Some(cri::DnsConfig {
            servers: vec!["10.0.0.10".into()],
            searches: vec!["svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        }),
        port_mappings: vec![cri::PortMapping { container_port: 80, host_port: 8080, ..Default::default() }],
        labels: owned(&[("app", "web")]),
        annotations: owned(&[("kubernetes.io/ingress-bandwidth", "10M"), ("note", "x")]),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: "/kubepods/pod3f2a".into(),
            security_context: Some(context),
            sysctls: owned(&[("kernel.shm_rmid_forced", "1")]),
            overhead: Some(resources.clone()),
            resources: Some(resources),
        }),
        windows: None,
    }
}

/// A container with something in most fields; its image is nowhere, so that nothing of it comes to be.
fn container(dice: &mut Dice, folder: &Path) -> cri::ContainerConfig {
    let context = cri::LinuxContainerSecurityContext {
        namespace_options: Some(cri::NamespaceOption {
            pid: cri::NamespaceMode::Container.into(),
            target_id: "x".into(),
            ..Default::default()
        }),
        capabilities: Some(cri::Capability { add_capabilities: vec!["CHOWN".into()], ..Default::default() }),
        run_as_username: "www".into(),
        masked_paths: vec!["/proc/kcore".into()],
        apparmor: Some(cri::SecurityProfile { profile_type: 1, ..Default::default() }),
        ..Default::default()
    };
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "main".into(), attempt: dice.roll(3) as u32 }),
        image: Some(cri::ImageSpec { image: "127.0.0.1:1/none:1".into(), ..Default::default() }),
        command: vec!["sh".into()],
        args: vec!["-c".into(), "true".into()],
        envs: vec![cri::KeyValue { key: "A".into(), value: "b".into() }],
        mounts: vec![cri::Mount {
            container_path: "/data".into(),
            host_path: folder.display().to_string(),
            ..Default::default()
        }],
        devices: vec![cri::Device { host_path: "/dev/null".into(), ..Default::default() }],
        log_path: "main/0.log".into(),
        linux: Some(cri::LinuxContainerConfig { security_context: Some(context), ..Default::default() }),
        ..Default::default()
    }
}

/// A request as a kubelet sends it, or at least one in which something stands.
fn sound(dice: &mut Dice, call: &str, ids: &[String], folder: &Path) -> Vec<u8> {
    let id = match ids {
        [] => "0123456789ab".to_owned(),
        ids => ids[dice.roll(ids.len())].clone(),
    };
    let cmd = vec!["sh".to_owned(), "-c".into(), "true".into()];
    let image = Some(cri::ImageSpec { image: "127.0.0.1:1/none:1".into(), ..Default::default() });
    let labels = owned(&[("app", "web")]);
    match call {
        "RunPodSandbox" => {
            cri::RunPodSandboxRequest { config: Some(pod(dice, folder)), ..Default::default() }.encode_to_vec()
        }
        "CreateContainer" => cri::CreateContainerRequest {
            pod_sandbox_id: id,
            config: Some(container(dice, folder)),
            sandbox_config: Some(pod(dice, folder)),
        }
        .encode_to_vec(),
        "ListPodSandbox" | "StreamPodSandboxes" => cri::ListPodSandboxRequest {
            filter: Some(cri::PodSandboxFilter {
                id,
                state: Some(cri::PodSandboxStateValue { state: 1 }),
                label_selector: labels,
            }),
        }
        .encode_to_vec(),
        "ListContainers" | "StreamContainers" => cri::ListContainersRequest {
            filter: Some(cri::ContainerFilter {
                id: "x".into(),
                state: Some(cri::ContainerStateValue { state: 1 }),
                pod_sandbox_id: id,
                label_selector: labels,
            }),
        }
        .encode_to_vec(),
        "UpdateContainerResources" => cri::UpdateContainerResourcesRequest {
            container_id: id,
            linux: Some(cri::LinuxContainerResources { cpu_shares: 2, ..Default::default() }),
            ..Default::default()
        }
        .encode_to_vec(),
        "ExecSync" => cri::ExecSyncRequest { container_id: id, cmd, timeout: 1 }.encode_to_vec(),
        "Exec" => {
            cri::ExecRequest { container_id: id, cmd, stdout: true, stdin: true, ..Default::default() }.encode_to_vec()
        }
        "Attach" => cri::AttachRequest { container_id: id, stdout: true, ..Default::default() }.encode_to_vec(),
        "PortForward" => cri::PortForwardRequest { pod_sandbox_id: id, port: vec![80, 443] }.encode_to_vec(),
        "UpdateRuntimeConfig" => cri::UpdateRuntimeConfigRequest {
            runtime_config: Some(cri::RuntimeConfig {
                network_config: Some(cri::NetworkConfig { pod_cidr: "10.0.0.0/24,fd00::/64".into() }),
            }),
        }
        .encode_to_vec(),
        "PullImage" => cri::PullImageRequest {
            image,
            auth: Some(cri::AuthConfig { username: "u".into(), auth: "dTpw".into(), ..Default::default() }),
            sandbox_config: Some(pod(dice, folder)),
        }
        .encode_to_vec(),
        "ImageStatus" => cri::ImageStatusRequest { image, verbose: true }.encode_to_vec(),
        "RemoveImage" | "ListImages" | "StreamImages" => cri::RemoveImageRequest { image }.encode_to_vec(),
        // Most of the others begin with an id.
        _ => cri::StopContainerRequest { container_id: id, timeout: 1 }.encode_to_vec(),
    }
}

/// Whether a request would have us talk to registries of the world.
fn goes_out(call: &str, request: &[u8]) -> bool {
    let Ok(request) = cri::PullImageRequest::decode(request) else { return false };
    let image = request.image.unwrap_or_default().image;
    call == "PullImage" && image.parse::<ImageRef>().is_ok_and(|image| image.domain() != "127.0.0.1:1")
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fuzz() {
    let seconds = setting("BERTH_FUZZ_SECONDS", 3);
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = setting("BERTH_FUZZ_SEED", clock | 1);
    println!("BERTH_FUZZ_SEED={seed}");
    let mut dice = Dice(seed);
    let services = Services::open().await;
    let calls = calls();
    assert!(calls.len() >= 40, "{calls:?}");
    let (end, mut rounds) = (Instant::now() + Duration::from_secs(seconds), 0);
    let mut told = BTreeMap::<String, u64>::new();
    // Each call at least once, however slow this machine is.
    while Instant::now() < end || rounds < calls.len() * 4 {
        let path = &calls[rounds % calls.len()];
        let call = path.rsplit('/').next().unwrap();
        let ids = services.pods().await;
        let mut request = sound(&mut dice, call, &ids, services.folder.path());
        match dice.roll(8) {
            0 => request = (0..dice.roll(200)).map(|_| dice.roll(256) as u8).collect(),
            1 => {
                for _ in 0..=dice.roll(4) {
                    let at = dice.roll(request.len());
                    request[at] ^= 1 << dice.roll(8);
                }
            }
            2 => {}
            _ => {
                for _ in 0..=dice.roll(3) {
                    request = bend(&mut dice, &request);
                }
            }
        }
        rounds += 1;
        if goes_out(call, &request) {
            continue;
        }
        let begun = Instant::now();
        let code = match services.ask(path, request.clone()).await {
            Ok(_) => Code::Ok,
            Err(status) => {
                // The decoder's own word for what is no message (tonic), and a plugin's garbage is its own bug.
                let words = ["failed to decode Protobuf message", "plugin odd ADD: printed no result"];
                let known =
                    status.code() == Code::Internal && words.iter().any(|words| status.message().contains(words));
                let fine = known || !matches!(status.code(), Code::Internal | Code::Unknown);
                assert!(fine, "BERTH_FUZZ_SEED={seed}, {path}: {status}\n{request:02x?}");
                assert!(
                    status.message().len() < 4096,
                    "{path}: {} bytes of {:.200}",
                    status.message().len(),
                    status.message()
                );
                status.code()
            }
        };
        assert!(begun.elapsed() < LIMIT);
        *told.entry(format!("{code:?}")).or_default() += 1;
        if services.pods().await.len() > 8 {
            clear(&services).await;
        }
    }
    println!("{rounds} requests: {told:?}");
    clear(&services).await;
    let containers: cri::ListContainersResponse =
        services.typed("ListContainers", cri::ListContainersRequest::default()).await.unwrap();
    assert_eq!(containers.containers, []);
    // Nothing but the folders that they make at the start; no mount.
    let left: Vec<_> =
        fs::read_dir(services.folder.path().join("r/supervisor/sandboxes")).into_iter().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let ours = services.folder.path().to_str().unwrap();
    assert!(!mounts.contains(ours), "{mounts}");
    for name in fs::read_dir(services.folder.path()).unwrap().flatten() {
        let name = name.file_name().into_string().unwrap();
        assert!(["d", "r", "bin", "net.d", "supervisor.toml"].contains(&name.as_str()), "{name} was made");
    }
}

/// Removes all pods.
async fn clear(services: &Services) {
    for id in services.pods().await {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id };
        let _: cri::RemovePodSandboxResponse = services.typed("RemovePodSandbox", request).await.unwrap();
    }
    assert!(services.pods().await.is_empty());
}
