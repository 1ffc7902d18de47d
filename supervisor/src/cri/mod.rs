//! CRI: what the kubelet asks of this node (`runtime.v1`), on the socket of containerd's services.
//!
//! `image_service` and `runtime_service` are the edge; `images` and `status` are rules, `auth` is what a pull logs in with. All of it
//! works in the namespace `k8s.io`, on the same records as containerd's services, so that `ctr -n k8s.io` shows the whole truth.
//! Built so far: images, `Version`, `Status`, `RuntimeConfig`. Everything else answers UNIMPLEMENTED, and is to become what follows.
//!
//! # What is kept where
//!
//! *Images* have a record under `repo@digest` and one under `repo:tag` (`crate::images`). Their id is the configuration's digest; it
//! is read from the documents and never recorded, so that nothing can disagree with them.
//!
//! *Sandboxes* are a table `sandboxes` in metadata.redb (`store::Table`, codec `Proto`): namespace and id -> state, time, handler, the
//! request (annotations go back unaltered), the result of CNI. *Containers* are records of `containers::Containers`, with the request
//! (`berth/cri.container`), the time of the start (`berth/cri.started`) and the exit (`berth/cri.exit`) as extensions; `ContainerRoots` keeps their
//! snapshots. A table `cri-names` has `pod/NAMESPACE/NAME/UID/ATTEMPT` and `container/SANDBOX/NAME/ATTEMPT` -> id; a name is written, and
//! removed, in the transaction of what it names, so that to reserve and to record are one act (`Containers::create` needs a sibling for
//! that). `check` and `namespaces::delete` have to know both tables. There is no second list in memory: a state is what the record
//! says, and of a container that runs, what its task says.
//!
//! # A sandbox without a pause process
//!
//! A thread makes the pod's namespaces (net, ipc, uts with its host name; user first, if the pod has one) and pins them at
//! `RUN/supervisor/sandboxes/ID/{net,ipc,uts,user}` (as `sys::netns` does it for net), beside `hosts`, `hostname`, `resolv.conf` and the
//! tmpfs `shm`. What the pod shares with the node isn't made. Unlike the engine's, these mounts stay in the host's table, four for a pod: it
//! outlives its containers, CNI wants a path, and a node has some hundred pods, not thousands. Containers get the pins as namespaces in their
//! specification and the annotation `io.kubernetes.cri.sandbox-id`, by which the shim's `start` finds the shim of the pod; before the first
//! container there is none. Only a pod that shares its pid namespace gets a process: a container with the sandbox's id, whose
//! program is the shim's own under another name (as `docker-init` is), which reaps, and ends at SIGTERM.
//!
//! # States
//!
//! ```text
//!             RunPodSandbox             Stop                      Remove
//! (name) ──▶ Making ──────▶ Ready ──▶ Stopping ──▶ NotReady ──▶ Removing ──▶ (nothing)
//!               └── failed ──────────────▲  removed at once, if undoing it succeeded
//! ```
//! CRI knows two of them: Ready is READY, all others are NOTREADY. Calls for one sandbox take turns, as those for a task do
//! (`tasks::task`), and go on when their caller has gone.
//!
//! # Orders; each step is durable before the next begins
//!
//! * *RunPodSandbox*: check everything (handler, user namespace's mappings, cgroup parent) · record as Making, with the name · folder,
//!   namespaces, pins · files, shm · CNI ADD · Ready with CNI's result. A failure goes the same way back; DEL also after an ADD that failed.
//! * *CreateContainer*: sandbox is Ready, image is here (`images`), specification written (cgroup by the driver of `status`) · lease · snapshot on the image's chain id ·
//!   record with specification, and name · end of the lease. No task: what is CREATED costs no process.
//! * *StartContainer*: time into the record · `Tasks::create` (the snapshot's mounts, stdout `cri:///LOG`) · `Tasks::start`. A failure is an
//!   exit: `StartError`, 128.
//! * *An exit* (`events`, or found by `Tasks::adopt`): exit into the record · `Tasks::delete`, which frees the shim · told to
//!   GetContainerEvents. Kubelets ask about containers long after their tasks have gone.
//! * *StopContainer*: signal, wait, SIGKILL, wait for the exit's record. *RemoveContainer*: that with no patience · record · snapshot goes
//!   to the collector · log stays, it is the kubelet's.
//! * *StopPodSandbox*: record as Stopping · stop all containers · CNI DEL · pins, shm · NotReady. *RemovePodSandbox*: that · record as Removing ·
//!   its containers · folder · record and name.
//!
//! # Calls that come twice
//!
//! Stop and Remove are fine any number of times and for what isn't there. RunPodSandbox and CreateContainer with a name that is taken
//! answer the id if the request says the same (compared as messages: Go writes maps in any order), after waiting for the call that
//! makes it, since a kubelet whose deadline passed asks again; else ALREADY_EXISTS names who has it. StartContainer of one that was
//! started is FAILED_PRECONDITION.
//!
//! # After a restart
//!
//! Tasks come back by `Tasks::adopt`; then each sandbox is read: Making is undone, Stopping and Removing are finished, Ready without its pins
//! (the machine started anew) becomes NotReady with CNI DEL, a folder or pin without record goes. A container that was started and has neither
//! task nor exit lost them with the run root: its exit is 255, `Unknown`. All of this is decided before the socket answers CRI; what plugins and
//! kills take their time for goes on behind, and calls for that sandbox wait for their turn.

mod auth;
mod cni;
mod containers;
mod error;
mod exits;
mod image_service;
mod images;
mod place;
mod pods;
mod process;
mod record;
mod restart;
mod runtime_service;
mod sandboxes;
mod spec;
mod stats;
mod status;
mod streaming;
mod turns;

pub(crate) use error::CriError;
pub(crate) use image_service::ImageService;
pub(crate) use pods::Pods;
pub(crate) use record::{CONTAINERS, NAMES, SANDBOXES};
pub(crate) use runtime_service::RuntimeService;
pub(crate) use status::Node;

/// The namespace of all that is CRI's, as in containerd.
const NAMESPACE: &str = "k8s.io";
