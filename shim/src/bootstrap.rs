//! Who starts this shim, and in which words it wants its answer: the dialects of containerd's shim contract.
//!
//! | parent | stdin of `start` | stdout | calls | events |
//! |---|---|---|---|---|
//! | containerd up to 2.2 | options as `Any` | the bare address | ttrpc, `containerd.task.v2.Task` | ttrpc, to `TTRPC_ADDRESS` |
//! | containerd 2.3 and later | BootstrapParams | BootstrapResult | gRPC, `containerd.task.v3.Task` | gRPC |
//! | Berth's supervisor, others without ttrpc | nothing, or options | JSON | gRPC, `containerd.task.v3.Task` | gRPC |
//!
//! 1.6 takes nothing but an address, and nothing in what it says tells it from 1.7 or 2.2, which would take JSON too; all of
//! them take the address and then speak ttrpc in version 2. A parent says that it can do more by sending BootstrapParams, by a
//! `MAX_SHIM_VERSION` of 3 (containerd always sends 2), or by having no ttrpc address.
//!
//! The socket doesn't depend on it: it serves both protocols to whoever comes, because a container outlives the version of
//! the daemon that started it.

use std::path::{Path, PathBuf};

use prost::Message as _;
use prost_types::Any;
use proto::containerd::runtime::bootstrap::v1::{BootstrapParams, BootstrapResult};

use crate::args::Args;

/// How a parent wants to be told where the shim listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// A line with the address; ttrpc, version 2.
    Line,
    /// A JSON document; gRPC, version 3.
    Json,
    /// A BootstrapResult; gRPC, version 3.
    Protobuf,
}

/// Where events go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EventSink {
    /// The gRPC event service on this socket.
    Grpc(PathBuf),
    /// The ttrpc event service at this address.
    Ttrpc(String),
}

/// The one who runs `start`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parent {
    dialect: Dialect,
    grpc: String,
    ttrpc: String,
    /// Folder for the socket, if the parent chose one.
    pub(crate) socket_dir: Option<PathBuf>,
    /// It wants to hear more.
    pub(crate) debug: bool,
}

impl Parent {
    /// Puts together what the command line, the environment and stdin say.
    pub(crate) fn read(args: &Args, variable: impl Fn(&str) -> Option<String>, stdin: &[u8]) -> Self {
        let variable = |name| variable(name).unwrap_or_default();
        let parent = Self {
            dialect: Dialect::Line,
            grpc: args.address.clone(),
            ttrpc: variable("TTRPC_ADDRESS"),
            socket_dir: None,
            debug: args.debug,
        };
        // Options are a message with the same first fields, so that they can be read as parameters: names decide.
        let params = BootstrapParams::decode(stdin).ok();
        let params = params.filter(|params| params.instance_id == args.id && params.namespace == args.namespace);
        if let Some(params) = params.filter(|_| !stdin.is_empty()) {
            let or = |given: String, else_this| if given.is_empty() { else_this } else { given };
            return Self {
                dialect: Dialect::Protobuf,
                grpc: or(params.containerd_grpc_address, parent.grpc),
                ttrpc: or(params.containerd_ttrpc_address, parent.ttrpc),
                socket_dir: Some(PathBuf::from(params.socket_dir)).filter(|folder| folder.is_absolute()),
                debug: args.debug || params.log_level < 0,
            };
        }
        let newest: u32 = variable("MAX_SHIM_VERSION").parse().unwrap_or(2);
        if newest >= 3 || parent.ttrpc.is_empty() {
            return Self { dialect: Dialect::Json, ..parent };
        }
        parent
    }

    /// Where it takes events.
    pub(crate) fn event_sink(&self) -> EventSink {
        match self.dialect {
            Dialect::Line => EventSink::Ttrpc(self.ttrpc.clone()),
            Dialect::Json | Dialect::Protobuf => {
                EventSink::Grpc(self.grpc.strip_prefix("unix://").unwrap_or(&self.grpc).into())
            }
        }
    }

    /// Whether the shim has to leave its address in the bundle: containerd up to 1.7 finds its shims by it after a restart,
    /// and with a folder that the parent chose `delete` couldn't work the address out.
    pub(crate) fn wants_address_file(&self) -> bool {
        self.dialect != Dialect::Json
    }

    /// What `start` prints.
    pub(crate) fn answer(&self, socket: &Path) -> Vec<u8> {
        // A bare path with gRPC: containerd dials it before it makes a gRPC target of it.
        let (version, address, protocol) = (3, socket.display().to_string(), "grpc".to_owned());
        match self.dialect {
            Dialect::Line => address_line(socket).into_bytes(),
            Dialect::Json => {
                serde_json::json!({ "version": version, "address": address, "protocol": protocol }).to_string().into()
            }
            Dialect::Protobuf => {
                BootstrapResult { version, address, protocol, ..BootstrapResult::default() }.encode_to_vec()
            }
        }
    }
}

/// An address as containerd writes it. Without `unix://` 1.6 would look for an abstract socket.
pub(crate) fn address_line(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

/// The runtime options that came on stdin of `-info`, if any did.
pub(crate) fn options(stdin: &[u8]) -> Option<Any> {
    Any::decode(stdin).ok().filter(|any| !any.type_url.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::{containerd::runc::v1::Options, typeurl};

    fn args() -> Args {
        let (namespace, id) = ("k8s.io".into(), "web".into());
        Args { namespace, id, address: "/run/c/containerd.sock".into(), ..Args::default() }
    }

    fn parent(variables: &[(&str, &str)], stdin: &[u8]) -> Parent {
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Parent::read(&args(), variable, stdin)
    }

    fn params() -> BootstrapParams {
        BootstrapParams {
            instance_id: "web".into(),
            namespace: "k8s.io".into(),
            log_level: -4,
            containerd_version: "v2.3.0".into(),
            containerd_ttrpc_address: "/run/c/containerd.sock.ttrpc".into(),
            containerd_grpc_address: "/run/c/other.sock".into(),
            socket_dir: "/run/c/s2".into(),
            ..BootstrapParams::default()
        }
    }

    #[test]
    fn each_parent_is_answered_in_its_dialect() {
        let containerd = [("TTRPC_ADDRESS", "/run/c/ttrpc"), ("MAX_SHIM_VERSION", "2")];
        let options = typeurl::pack(&Options { shim_cgroup: "/shims".into(), ..Options::default() }).encode_to_vec();
        let other = BootstrapParams { instance_id: "other".into(), ..params() }.encode_to_vec();
        let (line, json) = ("unix:///s/1", r#"{"address":"/s/1","protocol":"grpc","version":3}"#);
        let ttrpc = EventSink::Ttrpc("/run/c/ttrpc".into());
        let grpc = EventSink::Grpc("/run/c/containerd.sock".into());
        for (variables, stdin, answer, sink) in [
            (&containerd[..], &options[..], line, &ttrpc),
            (&containerd, b"", line, &ttrpc),
            (&containerd, b"\xff\xff", line, &ttrpc),
            (&containerd, &other, line, &ttrpc),
            (&[("TTRPC_ADDRESS", "/run/c/ttrpc"), ("MAX_SHIM_VERSION", "3")], b"", json, &grpc),
            (&[("TTRPC_ADDRESS", ""), ("MAX_SHIM_VERSION", "2")], &options, json, &grpc),
            (&[], b"", json, &grpc),
        ] {
            let parent = parent(variables, stdin);
            assert_eq!(String::from_utf8(parent.answer(Path::new("/s/1"))).unwrap(), answer, "{variables:?}");
            assert_eq!(&parent.event_sink(), sink, "{variables:?}");
            assert_eq!((parent.socket_dir, parent.debug), (None, false));
        }
    }

    #[test]
    fn bootstrap_parameters_stand_above_flags_and_environment() {
        let variables = [("TTRPC_ADDRESS", "/run/c/ttrpc"), ("MAX_SHIM_VERSION", "2")];
        let parent = parent(&variables, &params().encode_to_vec());
        let answer = BootstrapResult::decode(&*parent.answer(Path::new("/s/1"))).unwrap();
        assert_eq!((answer.version, answer.address.as_str(), answer.protocol.as_str()), (3, "/s/1", "grpc"));
        assert_eq!(parent.event_sink(), EventSink::Grpc("/run/c/other.sock".into()));
        assert_eq!((parent.socket_dir.as_deref(), parent.debug), (Some(Path::new("/run/c/s2")), true));
    }

    proptest! {
        #[test]
        fn any_stdin_is_read(stdin in proptest::collection::vec(any::<u8>(), 0..200)) {
            parent(&[("TTRPC_ADDRESS", "/t")], &stdin);
            let _ = options(&stdin);
        }
    }
}
