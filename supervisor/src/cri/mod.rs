//! CRI: what the kubelet asks of this node (`runtime.v1`), on the socket of containerd's services.
//!
//! `image_service` and `runtime_service` are the edge, `pods` is what their calls stand on: `sandboxes`, `containers`, `process` (what
//! is done in a container), `exits`, `restart`, `nri` (plugins), `relays` (stdio under shims of others). Below them are `place` (a
//! sandbox's namespaces and files), `pause`, `cni`, `spec`,
//! `streaming`, `images`, `status`. All of it works in the namespace `k8s.io`, on the same records as containerd's services, so that
//! `ctr -n k8s.io` shows the whole truth.
//!
//! # What is kept where
//!
//! *Images* have a record under `repo@digest` and one under `repo:tag` (`crate::images`). Their id is the configuration's digest; it
//! is read from the documents and never recorded, so that nothing can disagree with them.
//!
//! *Sandboxes* are the table `cri-sandboxes` (`record`): phase, time, the request (annotations go back unaltered), what CNI gave.
//! *Containers* have two records: `cri-containers`, what they are to the kubelet, and `containers::CONTAINERS`, what containerd's services
//! show of them and `Tasks` works with; `ContainerRoots` keeps their snapshots. `cri-names` has the names of both. Records of one thing, and
//! its name, come and go in one transaction, so that to reserve and to record are one act. There is no second list in memory: a
//! container runs if its record says that it was started and not that it ended, and each that runs is followed (`exits`).
//!
//! # A sandbox without a pause process
//!
//! A thread makes the pod's namespaces (net, ipc, uts with its host name) and pins them at `RUN/supervisor/sandboxes/ID/{net,ipc,uts}`,
//! beside `hosts`, `hostname`, `resolv.conf` and the tmpfs `shm`. What the pod shares with the node isn't made. Unlike the engine's, these
//! mounts stay in the host's table, four for a pod: it outlives its containers, CNI wants a path, and a node has some hundred pods, not
//! thousands. Containers get the pins as namespaces in their specification and the annotation `io.kubernetes.cri.sandbox-id`, by which the
//! shim's `start` finds the shim of the pod; before the first container there is none. Only a pod that shares its pid namespace, or is run by somebody else's shim, gets a
//! process: a container with the sandbox's id, whose program is the shim's own under another name (`pause`).
//!
//! With users of its own, a pod has a user namespace that owns the others, pinned as `user`. As a process with threads can't make one, a
//! child does (`sys::userns`). Files keep their owners on the disk: the container's snapshot has the ids on its labels, as containerd's
//! snapshotters know them, so that the overlay's layers are mounted with other owners and its upper folder belongs to the pod's root; the
//! sandbox's files and the image's volumes are id-mapped binds. Whether all of that can be had is tried (`status`), and the kubelet told.
//!
//! Images as mounts (`image_mounts`) are views that the container's record keeps, mounted on the host only while its task is made.
//!
//! # Phases
//!
//! ```text
//!             RunPodSandbox             Stop                   Remove
//! (name) ──▶ Making ──────▶ Ready ──▶ Stopping ──▶ NotReady ─────────▶ (nothing)
//!               └── failed ──────────────▲  removed at once, if undoing it succeeded
//! ```
//! CRI knows two of them: Ready is READY, all others are NOTREADY. Calls for one sandbox and its containers take turns (`turns`) and go on when
//! their caller has gone; only the wait of StopContainer is outside of them, so that a second one with less patience isn't kept waiting.
//!
//! # Orders; each step is durable before the next begins
//!
//! * *RunPodSandbox*: check everything · record as Making, with the name · folder, namespaces, pins · files, shm · CNI ADD · pause process, if there
//!   is to be one · Ready with CNI's result. A failure goes the way of Stop and Remove; DEL also after an ADD that failed.
//! * *CreateContainer*: sandbox is Ready, image is here · lease · snapshot on the image's chain id · views of images · specification
//!   written, volumes of the image filled · records with name · end of the lease. No task: what is CREATED costs no process. Lease and
//!   snapshots mean nothing without this process until the records are there (`layer`).
//! * *StartContainer*: time into the record · images mounted · under a shim of somebody else a relay · `Tasks::create` (the snapshot's mounts,
//!   stdout `cri:///LOG` or the relay's FIFOs) · `Tasks::start`. A failure is an end: `StartError`, 128. It is CREATED to others until all of
//!   that is done (`starting`).
//! * *An end* (`exits`): the relay's, when it has written everything · into the record · `Tasks::delete`, which frees the shim · told to GetContainerEvents. Kubelets ask about containers long
//!   after their tasks have gone.
//! * *StopContainer*: signal, wait, SIGKILL, wait for the end's record. *RemoveContainer*: that with no patience · records, that of the
//!   snapshot with them · its files · log stays, it is the kubelet's.
//! * *StopPodSandbox*: record as Stopping · kill all containers · CNI DEL · pins, shm · NotReady. *RemovePodSandbox*: that ·
//!   its containers · folder · record and name. No record says that a removal has begun: what has ended can't begin again, and one
//!   that was cut off is done by whoever asks again.
//! * *CheckpointContainer*: criu's images into a folder of ours · the archive, which has no name yet · its name (`checkpoint`).
//!
//! Plugins of NRI, if there are any, are told of each of these (`nri`): before Ready, between specification and record, between task create and start, after
//! an end is recorded, before a record goes.
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
//! Tasks come back by `Tasks::adopt`; then each record is read (`restart`): Making is undone, Stopping is finished, Ready without
//! its pins (the machine started anew) becomes NotReady with CNI DEL, a folder without record goes. A container that was started and has
//! neither task nor end lost them with the run root: its end is 255, `Unknown`. All of this is decided before the socket answers CRI; what
//! plugins and kills take their time for goes on behind, and calls for that sandbox wait for their turn.

mod auth;
mod checkpoint;
mod cni;
mod containers;
mod error;
mod exits;
#[cfg(test)]
mod fuzz;
mod image_mounts;
mod image_service;
mod images;
mod layer;
mod lists;
mod nri;
mod pause;
mod place;
mod pods;
mod process;
mod record;
mod relays;
mod restart;
mod runtime_service;
mod sandboxes;
mod spec;
mod starting;
mod stats;
mod status;
mod streaming;
mod turns;

pub(crate) use error::CriError;
pub(crate) use image_service::ImageService;
pub(crate) use lists::add_routes;
pub(crate) use pods::Pods;
pub(crate) use record::{CONTAINERS, NAMES, NODE, SANDBOXES};
pub(crate) use runtime_service::RuntimeService;
pub(crate) use status::Node;

/// The namespace of all that is CRI's, as in containerd.
const NAMESPACE: &str = "k8s.io";
