//! `Any` values with the type urls that containerd's typeurl library writes.

use prost::{Message, Name};
use prost_types::Any;

/// Type url of an OCI runtime spec (config.json) as JSON.
pub const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// Type url of an OCI process (for exec) as JSON.
pub const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// Type url of OCI resources (for update) as JSON.
pub const RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// Packs a message under its bare full name, as containerd does.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

/// Packs a JSON document under the type url given.
pub fn pack_json(type_url: &str, json: Vec<u8>) -> Any {
    Any { type_url: type_url.to_owned(), value: json }
}

/// Whether `any` holds a message of type `M`, with or without a `types.googleapis.com/` in front of its name.
pub fn is<M: Name>(any: &Any) -> bool {
    any.type_url.rsplit('/').next() == Some(&M::full_name())
}

/// Unpacks a message; `None` if `any` holds another type, an error if its bytes are not that message.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Option<Result<M, prost::DecodeError>> {
    is::<M>(any).then(|| M::decode(any.value.as_slice()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::events::{TaskExit, TaskStart};

    #[test]
    fn round_trip_with_both_spellings() {
        let exit = TaskExit { container_id: "web".into(), exit_status: 7, ..Default::default() };
        let mut any = pack(&exit);
        assert_eq!(any.type_url, "containerd.events.TaskExit");
        assert_eq!(unpack::<TaskExit>(&any).unwrap().unwrap(), exit);
        any.type_url = "types.googleapis.com/containerd.events.TaskExit".into();
        assert!(is::<TaskExit>(&any) && unpack::<TaskStart>(&any).is_none());
    }
}
