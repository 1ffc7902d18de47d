//! One plugin: how it becomes one, and calls to it.
//!
//! ```text
//!   plugin ── RegisterPlugin(name, index) ──▶ runtime        within the time to register
//!          ◀── Configure ─────────────────── answers its events
//!          ◀── Synchronize (pods, containers) … answers updates
//!          ◀── events, each within the time to answer; one that is late or broken is disconnected
//!          ── UpdateContainers ────────────▶ at any time
//! ```

use std::{
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use prost::Message;
use proto::{
    nri::pkg::api::v1alpha1 as nri,
    ttrpc::{Call, Client, MESSAGE_LIMIT, mux, serve},
};
use tokio::{
    net::UnixStream,
    process::{Child, Command},
    sync::oneshot,
    task::{AbortHandle, JoinHandle},
};
use tonic::{Code, Status};

use super::{Nri, error::PluginError, launch::Program};

/// The service that plugins serve.
const PLUGIN: &str = "nri.pkg.api.v1alpha1.Plugin";
/// The service that we serve.
const RUNTIME: &str = "nri.pkg.api.v1alpha1.Runtime";
/// Bits of all events.
const ALL_EVENTS: i32 = (1 << (nri::Event::Last as i32 - 1)) - 1;
/// What one message of the state of this node may have, with room for what stands around it.
const STATE_LIMIT: usize = MESSAGE_LIMIT / 4 * 3;

/// A plugin that knows the state of this node, or is about to.
pub(super) struct Plugin {
    /// Which of all that ever were.
    pub(super) number: u64,
    /// Two digits, by which plugins stand in order.
    pub(super) index: String,
    /// Its name without them.
    pub(super) base: String,
    client: Client,
    events: i32,
    limit: Duration,
    moving: AbortHandle,
    // Killed when the plugin is dropped.
    _process: Option<Child>,
}

/// Why a call had no answer.
pub(super) enum Failed {
    /// The plugin is to be disconnected.
    Lost(PluginError),
    /// It answered with an error.
    Refused(Status),
}

impl Plugin {
    /// As it is called in messages: index and name.
    pub(super) fn name(&self) -> String {
        format!("{}-{}", self.index, self.base)
    }

    /// Whether it wants to hear of an event.
    pub(super) fn wants(&self, event: nri::Event) -> bool {
        self.events & bit(event) != 0
    }

    /// Calls it.
    pub(super) async fn call<A: Message + Default>(
        &self,
        method: &'static str,
        request: &impl Message,
    ) -> Result<A, Failed> {
        call(&self.client, method, request, self.limit).await
    }

    /// Tells it what there is; gives what it wants to be changed.
    pub(super) async fn synchronize(
        &self,
        pods: Vec<nri::PodSandbox>,
        containers: Vec<nri::Container>,
    ) -> Result<Vec<nri::ContainerUpdate>, PluginError> {
        let mut lots = lots(pods, containers).into_iter().peekable();
        let mut updates = Vec::new();
        while let Some(mut lot) = lots.next() {
            lot.more = lots.peek().is_some();
            let answer: nri::SynchronizeResponse = match self.call("Synchronize", &lot).await {
                Ok(answer) => answer,
                Err(Failed::Lost(error)) => return Err(error),
                Err(Failed::Refused(cause)) => {
                    return Err(PluginError::Call { call: "Synchronize", cause: Box::new(cause) });
                }
            };
            if lot.more && !answer.more {
                return Err(PluginError::Parts);
            }
            updates.extend(answer.update);
        }
        Ok(updates)
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        // It may not read what we send, so that its connection wouldn't end by itself.
        self.moving.abort();
    }
}

fn bit(event: nri::Event) -> i32 {
    1 << (event as i32 - 1)
}

/// The state of this node in messages that are small enough; one at least.
fn lots(pods: Vec<nri::PodSandbox>, containers: Vec<nri::Container>) -> Vec<nri::SynchronizeRequest> {
    let (mut all, mut lot, mut length) = (Vec::new(), nri::SynchronizeRequest::default(), 0);
    let mut room = |lot: &mut nri::SynchronizeRequest, more: usize| {
        if length + more > STATE_LIMIT && length > 0 {
            all.push(std::mem::take(lot));
            length = 0;
        }
        // Its tag and length.
        length += more + 8;
    };
    for pod in pods {
        room(&mut lot, pod.encoded_len());
        lot.pods.push(pod);
    }
    for container in containers {
        room(&mut lot, container.encoded_len());
        lot.containers.push(container);
    }
    all.push(lot);
    all
}

async fn call<A: Message + Default>(
    client: &Client,
    method: &'static str,
    request: &impl Message,
    limit: Duration,
) -> Result<A, Failed> {
    match client.call_encoded(PLUGIN, method, "", request.encode_to_vec(), Some(limit)).await {
        Ok(answer) => {
            A::decode(answer.as_slice()).map_err(|cause| Failed::Lost(PluginError::Garbage { call: method, cause }))
        }
        // Its connection is gone, or it is late: it may never answer again.
        Err(status) if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) => {
            Err(Failed::Lost(PluginError::Call { call: method, cause: Box::new(status) }))
        }
        Err(status) => Err(Failed::Refused(status)),
    }
}

/// Who comes at the other end.
struct Edge {
    nri: Weak<Nri>,
    registered: Mutex<Option<oneshot::Sender<nri::RegisterPluginRequest>>>,
    /// Only who knows the state of this node may ask for changes.
    admitted: AtomicBool,
}

impl Edge {
    async fn answer(self: Arc<Self>, call: Call) -> Result<Vec<u8>, Status> {
        match (call.service(), call.method()) {
            (RUNTIME, "RegisterPlugin") => {
                let request: nri::RegisterPluginRequest = call.message()?;
                let sender = self.registered.lock().unwrap_or_else(PoisonError::into_inner).take();
                let sender = sender.ok_or_else(|| Status::already_exists("this plugin has registered already"))?;
                // Whoever waited may have lost patience.
                let _ = sender.send(request);
                Ok(nri::Empty {}.encode_to_vec())
            }
            (RUNTIME, "UpdateContainers") => {
                let request: nri::UpdateContainersRequest = call.message()?;
                if !self.admitted.load(Ordering::Acquire) {
                    return Err(Status::failed_precondition("this plugin hasn't been synchronized yet"));
                }
                let nri = self.nri.upgrade().ok_or_else(|| Status::unavailable("the runtime ends"))?;
                let failed = nri.changes(request.update, request.evict).await;
                Ok(nri::UpdateContainersResponse { failed }.encode_to_vec())
            }
            _ => Err(call.unimplemented()),
        }
    }
}

/// Somebody who has registered and said what it wants to hear, and what ends with its connection.
pub(super) struct Candidate {
    /// The plugin.
    pub(super) plugin: Plugin,
    /// Ends with the connection.
    pub(super) moving: JoinHandle<std::io::Result<()>>,
    /// Where it asks for changes.
    pub(super) door: Door,
}

/// Where a plugin asks for changes, once it knows what there is.
pub(super) struct Door(Arc<Edge>);

impl Door {
    /// From now on.
    pub(super) fn open(&self) {
        self.0.admitted.store(true, Ordering::Release);
    }
}

/// Takes somebody as a plugin; `program` is what we have started.
pub(super) async fn meet(
    nri: &Arc<Nri>,
    stream: UnixStream,
    program: Option<(Program, Child)>,
) -> Result<Candidate, PluginError> {
    let mux::Shared { plugin, runtime, moving } = mux::share(stream);
    let given_up = GivenUp(Some(moving.abort_handle()));
    let (sender, registered) = oneshot::channel();
    let edge = Arc::new(Edge {
        nri: Arc::downgrade(nri),
        registered: Mutex::new(Some(sender)),
        admitted: AtomicBool::new(false),
    });
    let answering = edge.clone();
    // Ends with the connection.
    tokio::spawn(serve(runtime, std::future::pending(), move |call| answering.clone().answer(call)));
    let client = Client::over(plugin);
    let patience = nri.config.registration;
    let said = tokio::select! {
        said = tokio::time::timeout(patience, registered) => said.map_err(|_| PluginError::Silent(patience))?,
        () = client.closed() => return Err(PluginError::Gone),
    };
    let said = said.map_err(|_| PluginError::Gone)?;
    let (index, base, config, process) = match program {
        // What its file is called counts, whatever it says.
        Some((program, process)) => (program.index, program.base, program.config, Some(process)),
        None => (said.plugin_idx, said.plugin_name, String::new(), None),
    };
    if !is_index(&index) || !is_name(&base) {
        return Err(PluginError::Name { name: base, index });
    }
    let limit = nri.config.request;
    let request = nri::ConfigureRequest {
        config,
        runtime_name: "berth".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        registration_timeout: i64::try_from(patience.as_millis()).unwrap_or(i64::MAX),
        request_timeout: i64::try_from(limit.as_millis()).unwrap_or(i64::MAX),
    };
    let answer: nri::ConfigureResponse = match call(&client, "Configure", &request, limit).await {
        Ok(answer) => answer,
        Err(Failed::Lost(error)) => return Err(error),
        Err(Failed::Refused(cause)) => return Err(PluginError::Call { call: "Configure", cause: Box::new(cause) }),
    };
    let events = match answer.events {
        // Who asks for nothing in particular can't know that a judge is asked for words.
        0 => ALL_EVENTS & !bit(nri::Event::ValidateContainerAdjustment),
        some if some & !ALL_EVENTS != 0 => return Err(PluginError::Events(some)),
        some => some,
    };
    let moving_on = given_up.keep();
    let plugin =
        Plugin { number: nri.number(), index, base, client, events, limit, moving: moving_on, _process: process };
    Ok(Candidate { plugin, moving, door: Door(edge) })
}

/// Ends a connection, unless it is kept.
struct GivenUp(Option<AbortHandle>);

impl GivenUp {
    fn keep(mut self) -> AbortHandle {
        self.0.take().expect("it is taken only here")
    }
}

impl Drop for GivenUp {
    fn drop(&mut self) {
        if let Some(moving) = &self.0 {
            moving.abort();
        }
    }
}

/// Whether plugins can stand here in order.
pub(super) fn is_index(index: &str) -> bool {
    index.len() == 2 && index.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a plugin can be called so.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && !name.chars().any(|c| c == '/' || c.is_control())
}

/// Starts a plugin's program.
pub(super) fn start(program: &Program) -> Result<(UnixStream, Child), PluginError> {
    let failed = |what, cause| PluginError::Program { what, at: program.at.clone(), cause };
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(|cause| failed("make a socket for", cause))?;
    let ours = ours.set_nonblocking(true).and_then(|()| UnixStream::from_std(ours));
    let ours = ours.map_err(|cause| failed("make a socket for", cause))?;
    // As stdin, since any other number would have to be open to whatever else we start meanwhile.
    let mut command = Command::new(&program.at);
    command
        .env_clear()
        .env("NRI_PLUGIN_NAME", &program.base)
        .env("NRI_PLUGIN_IDX", &program.index)
        .env("NRI_PLUGIN_SOCKET", "0")
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let child = command.spawn().map_err(|cause| failed("start", cause))?;
    Ok((ours, child))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_places() {
        assert!(is_index("00") && is_index("99"));
        assert!(!is_index("0") && !is_index("a1") && !is_index("001") && !is_index(""));
        assert!(is_name("logger") && !is_name("") && !is_name("a/b") && !is_name("a\nb"));
    }

    #[test]
    fn the_state_of_a_node_in_messages() {
        let pod = |length: usize| nri::PodSandbox { name: "x".repeat(length), ..Default::default() };
        let container = |length: usize| nri::Container { name: "x".repeat(length), ..Default::default() };
        assert_eq!(lots(vec![], vec![]).len(), 1);
        assert_eq!(lots(vec![pod(9)], vec![container(9)]).len(), 1);
        let many = lots((0..5000).map(|_| pod(1000)).collect(), (0..5000).map(|_| container(1000)).collect());
        let pods: usize = many.iter().map(|lot| lot.pods.len()).sum();
        let containers: usize = many.iter().map(|lot| lot.containers.len()).sum();
        assert_eq!((many.len(), pods, containers), (4, 5000, 5000));
        assert!(many.iter().all(|lot| lot.encoded_len() < MESSAGE_LIMIT));
        // One that is too large alone is tried: it is the plugin's connection that says so.
        assert_eq!(lots(vec![pod(10), pod(5 << 20)], vec![]).len(), 2);
    }

    #[test]
    fn all_events_have_a_bit() {
        assert_eq!(ALL_EVENTS, 0x3fff);
        assert_eq!(bit(nri::Event::RunPodSandbox), 1);
        assert_eq!(bit(nri::Event::ValidateContainerAdjustment), 0x2000);
    }
}
