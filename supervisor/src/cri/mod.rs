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
//! request as it came (annotations go back unaltered), the result of CNI. A second table, `sandbox-names`, holds `name_namespace_uid_attempt`
//! -> id and is written in the same transaction: reserving a name and recording a sandbox are one act. Both are known to `check` and to
//! `namespaces::delete`; a `gc::Roots` keeps the sandbox's images. *Containers* are records of `containers::Containers`, with the request
//! (`berth/cri.container`), the names' reservation (label `berth/cri.name`), and later the exit (`berth/cri.exit`) as extensions, since that is one
//! record and one transaction. There is no second list in memory: a state is the record's, and of a container that runs, the task's.
//!
//! # A sandbox without a pause process
//!
//! A thread makes the pod's namespaces (net, ipc, uts with its host name; user first, if the pod has one) and pins them at
//! `RUN/supervisor/sandboxes/ID/{net,ipc,uts,user}` (`sys::netns` has this for net), beside `hosts`, `hostname`, `resolv.conf` and `shm`.
//! What the pod shares with the node isn't pinned. Unlike the engine's, these pins stay as long as the sandbox: a pod outlives its
//! containers, and CNI wants a path. Containers get the pins as namespaces in their specification and the annotation `io.kubernetes.cri.sandbox-id`, by
//! which the shim's `start` finds the shim of the pod; there is none before the first container. Only a pod that shares its pid namespace gets a
//! process: a container with the sandbox's id, whose program is the shim's own (as docker-init is), reaps and waits for SIGTERM.
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
//! # Orders; each line is durable before the next begins
//!
//! * *RunPodSandbox*: check everything (handler, user namespace's mappings, cgroup parent) · record as Making, with the name · folder,
//!   namespaces, pins · files, shm · CNI ADD · Ready with CNI's result. A failure goes the same way back; DEL also after an ADD that failed.
//! * *CreateContainer*: sandbox is Ready, image is here (`images`), specification written · lease · snapshot on the image's chain id ·
//!   record, with specification · end of the lease. No task: what is CREATED costs no process.
//! * *StartContainer*: `Tasks::create` (stdout `cri:///LOG`) · `Tasks::start`. A failure is an exit: `StartError`, 128, in the record.
//! * *An exit* (`events`): exit into the record · `Tasks::delete`, which frees the shim · told to GetContainerEvents. Kubelets ask about
//!   containers long after their tasks have gone.
//! * *StopContainer*: signal, wait, SIGKILL, wait for the exit's record. *RemoveContainer*: that with no patience · record · snapshot goes
//!   to the collector · log stays, it is the kubelet's.
//! * *StopPodSandbox*: record as Stopping · stop all containers · CNI DEL · pins, shm · NotReady. *RemovePodSandbox*: that · record as Removing ·
//!   its containers · folder · record and name.
//!
//! # Calls that come twice
//!
//! Stop and Remove are fine any number of times and for what isn't there. RunPodSandbox and CreateContainer with a name that is taken
//! answer the id if the request is the same in every byte, after waiting for the call that makes it (a kubelet whose deadline passed asks
//! again); else ALREADY_EXISTS names who has it. StartContainer of a running one is FAILED_PRECONDITION.
//!
//! # After a restart
//!
//! Tasks come back by `Tasks::adopt`; then each sandbox is read: Making is undone, Stopping and Removing are finished, Ready without its pins
//! (the machine started anew) becomes NotReady with CNI DEL, a folder or pin without record goes. A container with a record, no exit and no task
//! never ran, or its bundle is gone with the run root: that exit is 255, `Unknown`. All this is done before the socket answers CRI, but for what
//! plugins do, which may take their time; until then calls for that sandbox wait for their turn.

mod auth;
mod image_service;
mod images;
mod runtime_service;
mod status;

pub(crate) use image_service::ImageService;
pub(crate) use runtime_service::RuntimeService;
pub(crate) use status::Node;

/// The namespace of all that is CRI's, as in containerd.
const NAMESPACE: &str = "k8s.io";
