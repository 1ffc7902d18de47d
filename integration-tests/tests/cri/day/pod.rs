//! What a pod is to be, and what is known of it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize},
    },
    time::{Duration, Instant},
};

use integration_tests::{
    Dice,
    kubelet::{IMAGE, container, networked},
};
use proto::runtime::v1 as cri;

/// Labels that kubelets give.
pub const UID: &str = "io.kubernetes.pod.uid";
pub const CONTAINER: &str = "io.kubernetes.container.name";

/// Numbered lines, some of them longer than CRI's parts, until it is asked to end.
const WRITER: &str = "l=x; n=0; while [ $n -lt 14 ]; do l=$l$l; n=$((n+1)); done; i=0; trap 'echo bye $i; exit 0' TERM; touch /tmp/ready; \
    while :; do j=0; while [ $j -lt 10 ]; do i=$((i+1)); j=$((j+1)); \
    if [ $((i % 70)) = 0 ]; then echo line $i $l; else echo line $i; fi; done; sleep 0.2; done";
/// Numbered lines, and an end.
const JOB: &str = "i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo line $i; done; sleep 0.5; echo bye $i";
const WEB: &str = "mkdir -p /www && echo it works > /www/index.html; busybox httpd -f -p 80 -h /www & trap 'kill $!; exit 0' TERM; wait";
const DEAF: &str = "trap '' TERM; while :; do sleep 0.3; done";
const CRASHER: &str = "echo line 1; sleep 0.2; echo bye 1; exit 3";

/// What a container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Init,
    /// Writes lines until it is asked to end.
    Writer,
    /// Is asked by probes, and by clients of the node's port.
    Web,
    /// Has to be killed.
    Deaf,
    /// Ends by itself, badly.
    Crasher,
    /// Ends by itself, well; its pod isn't restarted.
    Job,
}

/// A container of a pod.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub name: String,
    pub role: Role,
    pub image: String,
    pub shares_processes: bool,
}

/// How often it failed, and until when it isn't tried again.
#[derive(Debug, Clone, Copy)]
pub struct BackOff {
    pub until: Instant,
    pub pause: Duration,
}

/// A pod.
#[derive(Debug)]
pub struct Pod {
    pub name: String,
    pub uid: String,
    pub config: cri::PodSandboxConfig,
    pub inits: Vec<Wanted>,
    pub mains: Vec<Wanted>,
    pub life: Duration,
    pub grace: i64,
    pub host_port: Option<u16>,
    /// The kubelet ends it, or it has ended: its containers may go.
    pub ending: AtomicBool,
    /// How often a shim of it was killed.
    pub shots: AtomicUsize,
    pub back_off: Mutex<BTreeMap<String, BackOff>>,
    /// Files of logs of each container, in their order, by its id.
    pub logs: Mutex<BTreeMap<String, Log>>,
}

/// The log of a container.
#[derive(Debug, Clone)]
pub struct Log {
    pub container: String,
    pub role: Role,
    /// Where it is written now.
    pub path: PathBuf,
    /// What was renamed.
    pub old: Vec<PathBuf>,
}

impl Pod {
    /// Makes up a pod.
    pub fn make_up(number: usize, seed: u64, folder: &Path, images: usize) -> Self {
        let mut dice = Dice::new(seed ^ (number as u64 + 1).wrapping_mul(0x1234_5678_9abc_def1));
        let name = format!("p{number}");
        let uid = format!("uid-{number}");
        let mut config = networked(&name);
        let meta = config.metadata.as_mut().unwrap();
        meta.uid.clone_from(&uid);
        config.labels.insert(UID.into(), uid.clone());
        config.log_directory = folder.join("logs").join(format!("default_{name}_{uid}")).display().to_string();
        let on_node = dice.roll(10) == 0;
        let shares_processes = dice.roll(8) == 0;
        let host_port = (!on_node && dice.roll(6) == 0).then_some(20_000 + number as u16);
        if let Some(port) = host_port {
            config.port_mappings.push(cri::PortMapping {
                protocol: cri::Protocol::Tcp.into(),
                container_port: 80,
                host_port: port.into(),
                host_ip: String::new(),
            });
        }
        if !on_node && dice.roll(8) == 0 {
            for way in ["ingress", "egress"] {
                config.annotations.insert(format!("kubernetes.io/{way}-bandwidth"), "100M".into());
            }
        }
        let linux = config.linux.as_mut().unwrap();
        linux.cgroup_parent = format!("/berth-test-day-{}/pod-{uid}", std::process::id());
        let namespaces = linux.security_context.as_mut().unwrap().namespace_options.as_mut().unwrap();
        if on_node {
            namespaces.network = cri::NamespaceMode::Node.into();
            config.hostname.clear();
        }
        if shares_processes {
            namespaces.pid = cri::NamespaceMode::Pod.into();
        }
        let mut wanted = |name: &str, role| {
            let other = images > 0 && dice.roll(4) == 0;
            let image = if other { image_name(dice.roll(images)) } else { IMAGE.to_owned() };
            Wanted { name: name.into(), role, image, shares_processes }
        };
        let mut mains = vec![wanted("main", Role::Writer)];
        if !on_node {
            mains.push(wanted("web", Role::Web));
        }
        let inits = vec![wanted("init-a", Role::Init), wanted("init-b", Role::Init)];
        let inits = inits.into_iter().take(dice.roll(3)).collect();
        match dice.roll(8) {
            0 => mains.push(Wanted { name: "deaf".into(), role: Role::Deaf, image: IMAGE.into(), shares_processes }),
            1 | 2 => mains.push(Wanted {
                name: "crasher".into(),
                role: Role::Crasher,
                image: IMAGE.into(),
                shares_processes,
            }),
            3 => {
                mains = vec![Wanted { name: "job".into(), role: Role::Job, image: IMAGE.into(), shares_processes }];
            }
            _ => {}
        }
        let grace = if mains.iter().any(|main| main.role == Role::Deaf) { 1 } else { 30 };
        Self {
            name,
            uid,
            config,
            inits,
            mains,
            life: Duration::from_millis(2500 + dice.roll(5000) as u64),
            grace: if dice.roll(8) == 0 { 0 } else { grace },
            host_port,
            ending: AtomicBool::new(false),
            shots: AtomicUsize::new(0),
            back_off: Mutex::default(),
            logs: Mutex::default(),
        }
    }

    /// Whether it ends by itself.
    pub fn is_job(&self) -> bool {
        self.mains.iter().any(|main| main.role == Role::Job)
    }

    /// A container as the kubelet asks for it.
    pub fn container(&self, wanted: &Wanted, attempt: u32) -> cri::ContainerConfig {
        let script = match wanted.role {
            Role::Init => "echo line 1; echo bye 1",
            Role::Writer => WRITER,
            Role::Web => WEB,
            Role::Deaf => DEAF,
            Role::Crasher => CRASHER,
            Role::Job => JOB,
        };
        let mut config = container(&wanted.name, script);
        config.metadata.as_mut().unwrap().attempt = attempt;
        config.image = Some(cri::ImageSpec { image: wanted.image.clone(), ..Default::default() });
        config.labels = [(UID.to_owned(), self.uid.clone()), (CONTAINER.to_owned(), wanted.name.clone())].into();
        config.annotations.insert("io.kubernetes.container.restartCount".into(), attempt.to_string());
        config.log_path = format!("{}/{attempt}.log", wanted.name);
        let linux = config.linux.as_mut().unwrap();
        linux.resources = Some(cri::LinuxContainerResources {
            cpu_shares: 128,
            memory_limit_in_bytes: 64 << 20,
            ..Default::default()
        });
        if wanted.shares_processes {
            let context = linux.security_context.as_mut().unwrap();
            context.namespace_options.as_mut().unwrap().pid = cri::NamespaceMode::Pod.into();
        }
        config
    }

    /// Where a container writes.
    pub fn log_of(&self, wanted: &Wanted, attempt: u32) -> PathBuf {
        Path::new(&self.config.log_directory).join(&wanted.name).join(format!("{attempt}.log"))
    }
}

/// Images besides the one that all nodes have.
pub fn image_name(number: usize) -> String {
    format!("docker.io/library/day-{number}:latest")
}
