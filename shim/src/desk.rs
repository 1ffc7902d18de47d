//! The desk: knows which containers there are, and passes requests on to their tasks.

use std::{
    cell::{Cell, RefCell},
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use proto::containerd::task::v3::CreateTaskRequest;
use std::collections::HashMap;
use tokio::sync::{Notify, mpsc};

use crate::{
    cgroup,
    error::TaskError,
    events::Events,
    process::Reply,
    reaper::Reaper,
    report::warn_line,
    task::{self, Call, Message},
};

/// What all containers of this shim share.
pub(crate) struct Shim {
    /// Whose containers they are.
    pub(crate) namespace: String,
    /// Where the shim listens.
    pub(crate) socket: PathBuf,
    /// Where runtimes keep their state, a folder per namespace.
    pub(crate) runtime_root: PathBuf,
    /// Waits for children.
    pub(crate) reaper: Rc<Reaper>,
    /// Tells the supervisor.
    pub(crate) events: Rc<Events>,
    /// The way to the desk itself.
    pub(crate) desk: mpsc::UnboundedSender<Request>,
    /// How many console sockets there have been.
    pub(crate) consoles: Cell<u64>,
    /// Who is connected.
    pub(crate) callers: Rc<Callers>,
    /// The cgroup that the shim was put into by its first container's options.
    pub(crate) cgroup: RefCell<Option<String>>,
}

/// Who is connected to this process.
#[derive(Debug, Default)]
pub(crate) struct Callers {
    /// How many they are.
    pub(crate) count: Cell<usize>,
    /// One more or one less.
    pub(crate) changed: Notify,
}

/// A shim without a container and without a caller ends after this time. Its parent died between `start` and Create, or
/// between Delete and Shutdown, or forgot it; a parent that comes back finds it gone and knows what to do.
///
/// Long enough for a parent on a machine under load that has yet to connect.
const ORPHANED: Duration = Duration::from_secs(10);

impl Shim {
    /// A new path for a console socket: beside the shim's own socket, because paths in a bundle can be too long for one.
    pub(crate) fn console_path(&self) -> PathBuf {
        let number = self.consoles.get();
        self.consoles.set(number + 1);
        self.socket.with_extension(format!("pty{number}"))
    }

    /// Puts the shim, and with it the runtimes that it starts, into the cgroup that a caller chose for shims. The first
    /// container's choice counts for all of its pod, as with containerd's own shim.
    pub(crate) fn enter_cgroup(&self, path: &str) -> Result<(), TaskError> {
        if path.is_empty() || self.cgroup.borrow().is_some() {
            return Ok(());
        }
        cgroup::enter(path)?;
        *self.cgroup.borrow_mut() = Some(path.to_owned());
        Ok(())
    }

    /// Takes a container off the list.
    pub(crate) fn forget(&self, id: &str) {
        let _ = self.desk.send(Request::Forget(id.to_owned()));
    }
}

/// What is asked of the desk.
pub(crate) enum Request {
    /// A new container; answered with its pid.
    Create(Box<CreateTaskRequest>, Reply<u32>),
    /// Something for a container.
    Call(String, Call),
    /// A container is gone.
    Forget(String),
    /// End, if there is no container, or in any case; answered with whether it does.
    Shutdown(bool, Reply<bool>),
}

/// Serves requests until the shim is to end.
pub(crate) async fn run(shim: Rc<Shim>, mut requests: mpsc::UnboundedReceiver<Request>) {
    let mut containers: HashMap<String, mpsc::UnboundedSender<Message>> = HashMap::new();
    loop {
        let orphaned = containers.is_empty() && shim.callers.count.get() == 0;
        let request = tokio::select! {
            request = requests.recv() => request,
            () = shim.callers.changed.notified() => continue,
            () = tokio::time::sleep(ORPHANED), if orphaned => {
                warn_line!("nobody has needed this shim for {} s: it ends", ORPHANED.as_secs());
                return;
            }
        };
        let Some(request) = request else { return };
        match request {
            Request::Create(create, reply) => {
                if containers.contains_key(&create.id) {
                    let _ = reply.send(Err(TaskError::Exists { what: "container", id: create.id }));
                    continue;
                }
                let (inbox, messages) = mpsc::unbounded_channel();
                containers.insert(create.id.clone(), inbox.clone());
                tokio::task::spawn_local(task::run(shim.clone(), *create, inbox, messages, reply));
            }
            Request::Call(id, call) => {
                // An answer that never comes says that the container is gone; see `server`.
                if let Some(container) = containers.get(&id) {
                    let _ = container.send(Message::Call(call));
                }
            }
            Request::Forget(id) => drop(containers.remove(&id)),
            Request::Shutdown(now, reply) => {
                let ends = now || containers.is_empty();
                let _ = reply.send(Ok(ends));
                if ends {
                    return;
                }
            }
        }
    }
}
