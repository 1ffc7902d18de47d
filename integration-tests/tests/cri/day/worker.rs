//! The worker of a pod: looks at what is there, does what is missing, and again (kubelet's syncPod). It remembers nothing of calls that
//! broke off: what came of them is seen at the next look.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpStream},
    os::fd::AsFd as _,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use integration_tests::{Dice, eventually::patience, host::Host};
use proto::runtime::v1 as cri;
use tonic::Code;

use super::{
    calls::{Day, Failure},
    pod::{BackOff, Log, Pod, Role, UID, Wanted},
};
use crate::streams::Client;

/// Until the next look.
const TICK: Duration = Duration::from_millis(150);
/// How long anything of a pod may take.
const LIMIT: Duration = Duration::from_secs(150);

/// What is there of a pod.
#[derive(Debug, Default)]
pub struct Status {
    /// The newest first.
    pub sandboxes: Vec<cri::PodSandboxStatus>,
    /// The newest first.
    pub containers: Vec<cri::ContainerStatus>,
    /// Sandboxes of containers, by their ids.
    of: BTreeMap<String, String>,
}

impl Status {
    fn newest(&self, sandbox: &str, name: &str) -> Option<&cri::ContainerStatus> {
        self.containers.iter().find(|one| name_of(one) == name && self.of.get(&one.id).is_some_and(|of| of == sandbox))
    }
}

fn name_of(status: &cri::ContainerStatus) -> &str {
    status.metadata.as_ref().map_or("", |meta| meta.name.as_str())
}

impl Day {
    /// Whether a pod has lost a shim.
    pub fn was_shot(&self, pod: &Pod) -> bool {
        pod.shots.load(Ordering::SeqCst) > 0
    }

    /// Plays a pod from its beginning to its end.
    pub async fn play(
        self: Arc<Self>,
        pod: Arc<Pod>,
        node: Arc<tokio::sync::RwLock<integration_tests::kubelet::Node>>,
        seed: u64,
    ) {
        self.pods.lock().unwrap().insert(pod.uid.clone(), pod.clone());
        let mut dice = Dice::new(seed);
        let began = Instant::now();
        let mut ready: Option<(Instant, String)> = None;
        let prober = {
            let (day, pod) = (self.clone(), pod.clone());
            tokio::spawn(async move { day.probe(&pod, seed ^ 7).await })
        };
        loop {
            let step = self.sync(&pod).await;
            match step {
                Ok(true) if pod.is_job() => break,
                Ok(true) => {
                    if ready.is_none() {
                        self.count("pods ready");
                    }
                    let (since, _) = ready.get_or_insert_with(|| (Instant::now(), String::new()));
                    if since.elapsed() > pod.life {
                        break;
                    }
                    self.tinker(&pod, &mut dice, &node).await;
                }
                Ok(false) => {}
                Err(Failure::Lost) => {}
                Err(error) if error.is_on_purpose() => self.count("networks that failed"),
                Err(error) if self.was_shot(&pod) => {
                    self.count("refused after a shim was killed");
                    eprintln!("{}: after a shim was killed: {error:?}", pod.name);
                }
                Err(error) => self.complain(format!("{}: {error:?}", pod.name)),
            }
            if began.elapsed() > LIMIT {
                self.complain(format!("{} isn't ready, or not long enough: {:?}", pod.name, self.status(&pod).await));
                break;
            }
            tokio::time::sleep(TICK).await;
        }
        pod.ending.store(true, Ordering::SeqCst);
        let began = Instant::now();
        loop {
            match self.end(&pod).await {
                Ok(()) => break,
                Err(Failure::Lost) => {}
                Err(error) if error.is_on_purpose() => self.count("networks that failed"),
                Err(error) => self.complain(format!("{} doesn't end: {error:?}", pod.name)),
            }
            if began.elapsed() > LIMIT {
                return self.complain(format!("{} doesn't end: {:?}", pod.name, self.status(&pod).await));
            }
            tokio::time::sleep(TICK).await;
        }
        prober.await.unwrap();
        // The garbage collector takes it away.
        let began = Instant::now();
        while !matches!(self.status(&pod).await, Ok(status) if status.sandboxes.is_empty() && status.containers.is_empty())
        {
            if began.elapsed() > LIMIT {
                return self.complain(format!("{} isn't removed: {:?}", pod.name, self.status(&pod).await));
            }
            tokio::time::sleep(TICK).await;
        }
        self.judge_logs(&pod);
        self.pods.lock().unwrap().remove(&pod.uid);
        self.count("pods that came and went");
    }

    /// What is there of a pod.
    pub async fn status(&self, pod: &Pod) -> Result<Status, Failure> {
        let labels = || [(UID.to_owned(), pod.uid.clone())].into();
        let filter = cri::PodSandboxFilter { label_selector: labels(), ..Default::default() };
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        let mut sandboxes = self.call("ListPodSandbox", self.runtime().list_pod_sandbox(request)).await?.items;
        sandboxes.sort_by_key(|one| std::cmp::Reverse(one.created_at));
        let mut status = Status::default();
        for one in sandboxes {
            let request = cri::PodSandboxStatusRequest { pod_sandbox_id: one.id, verbose: false };
            match self.call("PodSandboxStatus", self.runtime().pod_sandbox_status(request)).await {
                Ok(answer) => status.sandboxes.extend(answer.status),
                Err(error) if error.is(Code::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        let filter = cri::ContainerFilter { label_selector: labels(), ..Default::default() };
        let request = cri::ListContainersRequest { filter: Some(filter) };
        let mut containers = self.call("ListContainers", self.runtime().list_containers(request)).await?.containers;
        containers.sort_by_key(|one| std::cmp::Reverse(one.created_at));
        for one in containers {
            let request = cri::ContainerStatusRequest { container_id: one.id.clone(), verbose: false };
            match self.call("ContainerStatus", self.runtime().container_status(request)).await {
                Ok(answer) => {
                    let Some(found) = answer.status else { continue };
                    self.note(&one.pod_sandbox_id, &found);
                    status.of.insert(one.id, one.pod_sandbox_id);
                    status.containers.push(found);
                }
                Err(error) if error.is(Code::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(status)
    }

    /// Does what is missing; whether nothing was.
    async fn sync(&self, pod: &Pod) -> Result<bool, Failure> {
        let status = self.status(pod).await?;
        let newest = status.sandboxes.first();
        let ready = newest.filter(|one| one.state() == cri::PodSandboxState::SandboxReady).cloned();
        let sandbox = match ready {
            Some(sandbox) => sandbox,
            None => {
                // All that is left of earlier ones is stopped before there is another.
                for old in &status.sandboxes {
                    self.count("sandboxes replaced");
                    self.stop_sandbox(&old.id).await?;
                }
                if pod.is_job()
                    && status.containers.iter().any(|one| name_of(one) == "job" && one.exit_code == 0 && has_ended(one))
                {
                    return Ok(true);
                }
                let attempt = newest.and_then(|one| one.metadata.as_ref()).map_or(0, |meta| meta.attempt + 1);
                self.run(pod, attempt).await?;
                return Ok(false);
            }
        };
        for init in &pod.inits {
            match status.newest(&sandbox.id, &init.name) {
                Some(one) if has_ended(one) && one.exit_code == 0 => {}
                Some(one) if one.state() == cri::ContainerState::ContainerRunning => return Ok(false),
                other => {
                    self.judge_end(pod, init, other);
                    self.start(pod, &sandbox, init, &status).await?;
                    return Ok(false);
                }
            }
        }
        let mut whole = true;
        for main in &pod.mains {
            let found = status.newest(&sandbox.id, &main.name);
            match found {
                Some(one) if one.state() == cri::ContainerState::ContainerRunning && main.role != Role::Job => continue,
                Some(one) if one.state() == cri::ContainerState::ContainerRunning => whole = false,
                Some(one) if main.role == Role::Job && has_ended(one) && one.exit_code == 0 => continue,
                // It is down most of the time.
                Some(_) if main.role == Role::Crasher && self.is_backed_off(pod, &main.name) => continue,
                other => {
                    whole &= main.role == Role::Crasher && other.is_some();
                    self.judge_end(pod, main, other);
                    self.start(pod, &sandbox, main, &status).await?;
                }
            }
        }
        Ok(whole)
    }

    fn is_backed_off(&self, pod: &Pod, name: &str) -> bool {
        pod.back_off.lock().unwrap().get(name).is_some_and(|pause| pause.until > Instant::now())
    }

    /// Whether a container may have ended as it did.
    fn judge_end(&self, pod: &Pod, wanted: &Wanted, found: Option<&cri::ContainerStatus>) {
        let Some(found) = found.filter(|one| has_ended(one)) else { return };
        let by_itself = match wanted.role {
            Role::Crasher => found.exit_code == 3 && found.reason == "Error",
            Role::Init | Role::Job => found.exit_code == 0 && found.reason == "Completed",
            _ => false,
        };
        // A start that a kill of the supervisor cut off is an end that nobody has seen.
        let cut_off = found.reason == "Unknown" && found.exit_code == 255;
        if cut_off {
            self.count("starts cut off");
        }
        if !by_itself && !cut_off && !self.was_shot(pod) && found.reason != "StartError" {
            self.complain(format!("{}: {} ended: {found:?}", pod.name, wanted.name));
        }
    }

    async fn run(&self, pod: &Pod, attempt: u32) -> Result<(), Failure> {
        let mut config = pod.config.clone();
        config.metadata.as_mut().unwrap().attempt = attempt;
        let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let first = self.call("RunPodSandbox", self.runtime().run_pod_sandbox(request.clone())).await;
        let id = match first {
            // The same at once: one pod must come of it, whichever call made it.
            Err(Failure::Lost) if pod.name.ends_with(['0', '2', '4', '6', '8']) => {
                self.count("RunPodSandbox repeated");
                match self.call("RunPodSandbox", self.runtime().run_pod_sandbox(request.clone())).await {
                    // The first one's remains are being cleared away, and it isn't there any more.
                    Err(error) if error.is(Code::AlreadyExists) => return Err(Failure::Lost),
                    other => other?.pod_sandbox_id,
                }
            }
            other => other?.pod_sandbox_id,
        };
        let again = self.call("RunPodSandbox", self.runtime().run_pod_sandbox(request)).await?.pod_sandbox_id;
        if again != id {
            self.complain(format!("{}: the same request made {id} and {again}", pod.name));
        }
        Ok(())
    }

    async fn start(
        &self,
        pod: &Pod,
        sandbox: &cri::PodSandboxStatus,
        wanted: &Wanted,
        status: &Status,
    ) -> Result<(), Failure> {
        if self.is_backed_off(pod, &wanted.name) {
            return Ok(());
        }
        let failed_before =
            status.newest(&sandbox.id, &wanted.name).is_some_and(|one| has_ended(one) && one.exit_code != 0);
        if failed_before {
            let mut all = pod.back_off.lock().unwrap();
            let pause = all
                .get(&wanted.name)
                .map_or(Duration::from_millis(100), |last| (last.pause * 2).min(Duration::from_secs(2)));
            all.insert(wanted.name.clone(), BackOff { until: Instant::now() + pause, pause });
            self.count("restarts");
        }
        // As kubelets count: on from the last one, or from the last log.
        let mut attempt = 0;
        for one in status.containers.iter().filter(|one| name_of(one) == wanted.name) {
            attempt = attempt.max(one.metadata.as_ref().map_or(0, |meta| meta.attempt + 1));
        }
        for log in pod.logs.lock().unwrap().values().filter(|log| log.container == wanted.name) {
            let number = log.path.file_stem().and_then(|stem| stem.to_str()?.parse::<u32>().ok());
            attempt = attempt.max(number.map_or(0, |number| number + 1));
        }
        self.ensure_image(&wanted.image).await?;
        let config = pod.container(wanted, attempt);
        let mut of = pod.config.clone();
        of.metadata.clone_from(&sandbox.metadata);
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(of),
        };
        let mut created = self.call("CreateContainer", self.runtime().create_container(request.clone())).await;
        if matches!(created, Err(Failure::Lost)) && !pod.name.ends_with(['1', '5']) {
            self.count("CreateContainer repeated");
            created = self.call("CreateContainer", self.runtime().create_container(request.clone())).await;
        }
        let id = match created {
            Ok(answer) => answer.container_id,
            // The garbage collector was faster.
            Err(error) if error.is(Code::NotFound) && !format!("{error:?}").contains("sandbox") => {
                self.count("images collected too early");
                return Err(Failure::Lost);
            }
            Err(error) => return Err(error),
        };
        let again = self.call("CreateContainer", self.runtime().create_container(request)).await?.container_id;
        if again != id {
            self.complain(format!("{}: the same request made {id} and {again}", pod.name));
        }
        let log = Log {
            container: wanted.name.clone(),
            role: wanted.role,
            path: pod.log_of(wanted, attempt),
            old: Vec::new(),
        };
        pod.logs.lock().unwrap().insert(id.clone(), log);
        let request = cri::StartContainerRequest { container_id: id.clone() };
        let mut started = self.call("StartContainer", self.runtime().start_container(request.clone())).await;
        if matches!(started, Err(Failure::Lost)) && !pod.name.ends_with(['1', '5']) {
            self.count("StartContainer repeated");
            started = match self.call("StartContainer", self.runtime().start_container(request)).await {
                // It was started, or never will be.
                Err(error) if error.is(Code::FailedPrecondition) => return Ok(()),
                other => other,
            };
        }
        started?;
        self.count("containers started");
        Ok(())
    }

    async fn stop_sandbox(&self, id: &str) -> Result<(), Failure> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call("StopPodSandbox", self.runtime().stop_pod_sandbox(request)).await.map(drop)
    }

    /// Stops all of a pod.
    async fn end(&self, pod: &Pod) -> Result<(), Failure> {
        let status = self.status(pod).await?;
        let running = status.containers.iter().filter(|one| one.state() == cri::ContainerState::ContainerRunning);
        let stops = running.map(async |one| {
            let request = cri::StopContainerRequest { container_id: one.id.clone(), timeout: pod.grace };
            self.call("StopContainer", self.runtime().stop_container(request)).await?;
            let request = cri::ContainerStatusRequest { container_id: one.id.clone(), verbose: false };
            let after = match self.call("ContainerStatus", self.runtime().container_status(request)).await {
                // The garbage collector was fast.
                Err(error) if error.is(Code::NotFound) => return Ok(()),
                other => other?.status.unwrap_or_default(),
            };
            if !has_ended(&after) {
                self.complain(format!("{}: stopped, but {after:?}", pod.name));
            }
            let code = after.exit_code;
            let fine = match name_of(one) {
                "main" if pod.grace > 1 => code == 0 || self.was_shot(pod),
                "main" if pod.grace == 1 => code == 0 || code == 137 || self.was_shot(pod),
                "crasher" => true,
                "web" if pod.grace > 1 => code == 0 || self.was_shot(pod),
                _ => code == 137 || code == 0 || self.was_shot(pod),
            };
            // One that was asked before it had set its trap.
            let early = after.finished_at - after.started_at < 2_000_000_000;
            if !fine && !early && after.reason != "Unknown" {
                self.complain(format!(
                    "{}: {} was stopped with {} s, and ended: {after:?}",
                    pod.name,
                    name_of(one),
                    pod.grace
                ));
            }
            Ok(())
        });
        for stopped in futures_util::future::join_all(stops).await {
            stopped?;
        }
        for sandbox in &status.sandboxes {
            self.stop_sandbox(&sandbox.id).await?;
        }
        let after = self.status(pod).await?;
        for one in &after.sandboxes {
            let address = one.network.as_ref().map_or("", |network| network.ip.as_str());
            if one.state() == cri::PodSandboxState::SandboxReady || !address.is_empty() {
                self.complain(format!("{}: stopped, but {one:?}", pod.name));
            }
        }
        if let Some(one) = after.containers.iter().find(|one| one.state() == cri::ContainerState::ContainerRunning) {
            self.complain(format!("{}: its sandbox is stopped, but {one:?}", pod.name));
        }
        Ok(())
    }

    /// Something that happens now and then to a pod that runs.
    async fn tinker(&self, pod: &Pod, dice: &mut Dice, node: &tokio::sync::RwLock<integration_tests::kubelet::Node>) {
        let choice = dice.roll(12);
        if choice > 4 {
            return;
        }
        let Ok(status) = self.status(pod).await else { return };
        let running: Vec<_> =
            status.containers.iter().filter(|one| one.state() == cri::ContainerState::ContainerRunning).collect();
        if running.is_empty() {
            return;
        }
        let one = running[dice.roll(running.len())];
        match choice {
            0 | 1 => self.rotate(pod, &one.id).await,
            2 => self.update(pod, one, 2 + dice.roll(1000) as i64).await,
            3 => self.stream(pod, one).await,
            _ => {
                let Some(port) = pod.host_port else { return };
                if pod.inits.is_empty() && dice.roll(2) == 0 {
                    return;
                }
                let node = node.read().await;
                let host: &Host = &node.host;
                let answered = tokio::task::block_in_place(|| {
                    let began = Instant::now();
                    loop {
                        if host.ask(port).contains("it works") {
                            return true;
                        }
                        if began.elapsed() > Duration::from_secs(20) * patience() {
                            return false;
                        }
                    }
                });
                self.count("ports of the node asked");
                if !answered && !self.was_shot(pod) {
                    let rules = tokio::task::block_in_place(|| host.run(["iptables-save", "-t", "nat"]).stdout());
                    let rules: Vec<_> = rules.lines().filter(|rule| rule.contains(&port.to_string())).collect();
                    let after = self.status(pod).await;
                    self.complain(format!(
                        "{}: nobody answers at the node's port {port}: {rules:?}, before: {status:?}, now: {after:?}",
                        pod.name
                    ));
                }
            }
        }
    }

    async fn update(&self, pod: &Pod, one: &cri::ContainerStatus, shares: i64) {
        let linux = cri::LinuxContainerResources { cpu_shares: shares, ..Default::default() };
        let request = cri::UpdateContainerResourcesRequest {
            container_id: one.id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        match self.call("UpdateContainerResources", self.runtime().update_container_resources(request)).await {
            Ok(_) => {}
            Err(Failure::Lost) => return,
            Err(_) if self.may_be_gone(pod, &one.id).await => return,
            Err(error) => return self.complain(format!("{}: {} not updated: {error:?}", pod.name, name_of(one))),
        }
        let request = cri::ContainerStatusRequest { container_id: one.id.clone(), verbose: false };
        let after = self.call("ContainerStatus", self.runtime().container_status(request)).await;
        let resources = after.ok().and_then(|after| after.status?.resources?.linux);
        if let Some(resources) = resources
            && (resources.cpu_shares, resources.memory_limit_in_bytes) != (shares, 64 << 20)
        {
            self.complain(format!("{}: {shares} shares were given, and it has {resources:?}", pod.name));
        }
    }

    /// Whether a container isn't running any more, or has lost its shim; or is about to be known for it.
    async fn may_be_gone(&self, pod: &Pod, id: &str) -> bool {
        let began = Instant::now();
        loop {
            let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
            let status = self.call("ContainerStatus", self.runtime().container_status(request)).await;
            let runs = |status: &cri::ContainerStatusResponse| {
                status.status.as_ref().is_some_and(|one| one.state() == cri::ContainerState::ContainerRunning)
            };
            if self.was_shot(pod) || pod.ending.load(Ordering::SeqCst) || !status.is_ok_and(|status| runs(&status)) {
                return true;
            }
            if began.elapsed() > Duration::from_secs(3) {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn stream(&self, pod: &Pod, one: &cri::ContainerStatus) {
        let generation = self.generation.load(Ordering::SeqCst);
        let cmd = ["sh", "-c", "cat; echo done; exit 4"].map(str::to_owned).into();
        let request = cri::ExecRequest {
            container_id: one.id.clone(),
            cmd,
            stdin: true,
            stdout: true,
            stderr: true,
            ..Default::default()
        };
        let url = match self.call("Exec", self.runtime().exec(request)).await {
            Ok(answer) => answer.url,
            Err(Failure::Lost) => return,
            Err(_) if self.may_be_gone(pod, &one.id).await => return,
            Err(error) => return self.complain(format!("{}: exec: {error:?}", pod.name)),
        };
        let talk = async {
            let mut client = Client::attempt(self.network.as_fd(), &url).await?;
            client.try_write(0, b"typed ").await?;
            client.try_write(255, &[0]).await?;
            while client.try_step().await? {}
            Ok::<_, std::io::Error>((client.heard(1), client.heard(3)))
        };
        let heard = tokio::time::timeout(Duration::from_secs(30), talk).await;
        match heard {
            Ok(Ok((out, status))) if out == "typed done\n" && status.contains(r#""message":"4""#) => {
                self.count("streams")
            }
            _ if self.generation.load(Ordering::SeqCst) != generation || self.may_be_gone(pod, &one.id).await => {}
            other => self.complain(format!("{}: stream of {}: {other:?}", pod.name, one.id)),
        }
    }

    /// Probes a pod until it ends.
    async fn probe(&self, pod: &Pod, seed: u64) {
        let mut dice = Dice::new(seed);
        let mut ready: Option<String> = None;
        while !pod.ending.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(300 + dice.roll(300) as u64)).await;
            let Ok(status) = self.status(pod).await else { continue };
            let running = |name: &str| {
                let mut all = status.containers.iter();
                all.find(|one| name_of(one) == name && one.state() == cri::ContainerState::ContainerRunning)
            };
            if let Some(one) = running("main") {
                let cmd = ["test", "-e", "/tmp/ready"].map(str::to_owned).into();
                let request = cri::ExecSyncRequest { container_id: one.id.clone(), cmd, timeout: 30 };
                match self.call("ExecSync", self.runtime().exec_sync(request)).await {
                    Ok(answer) if answer.exit_code == 0 => {
                        self.count("probes by exec");
                        ready = Some(one.id.clone());
                    }
                    Ok(_) if ready.as_ref() != Some(&one.id) => {}
                    Err(Failure::Lost) => {}
                    _ if self.may_be_gone(pod, &one.id).await => {}
                    other => self.complain(format!("{}: probe of {}: {other:?}", pod.name, one.id)),
                }
            }
            let address = status.sandboxes.first().and_then(|one| one.network.clone()).unwrap_or_default().ip;
            if let Some(one) = running("web")
                && let Ok(address) = address.parse()
                && now() - one.started_at > 5_000_000_000
            {
                let there = tokio::task::block_in_place(|| {
                    let connect = || TcpStream::connect_timeout(&SocketAddr::new(address, 80), Duration::from_secs(3));
                    sys::netns::within(self.network.as_fd(), connect).unwrap()
                });
                match there {
                    Ok(_) => self.count("probes by TCP"),
                    Err(_) if self.may_be_gone(pod, &one.id).await => {}
                    Err(error) => self.complain(format!("{}: nobody listens at {address}: {error}", pod.name)),
                }
            }
        }
    }
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as i64)
}

/// Whether a container has come to its end.
pub fn has_ended(status: &cri::ContainerStatus) -> bool {
    status.state() == cri::ContainerState::ContainerExited
}
