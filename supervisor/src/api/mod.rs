//! The gRPC edge: one file per service; each decodes, calls the rules, encodes. What all of them share is here.

pub(crate) mod containers;
pub(crate) mod content;
pub(crate) mod diff;
pub(crate) mod events;
pub(crate) mod health;
pub(crate) mod images;
pub(crate) mod introspection;
pub(crate) mod leases;
pub(crate) mod namespaces;
pub(crate) mod registry;
pub(crate) mod snapshots;
pub(crate) mod store;
pub(crate) mod streaming;
pub(crate) mod streams;
pub(crate) mod tasks;
pub(crate) mod transfer;
pub(crate) mod ttrpc;
pub(crate) mod version;

use tonic::Status;

use crate::filters::Filters;

/// Largest message in either direction. containerd's clients expect 16 MiB (gRPC's own default is 4).
pub(crate) const MESSAGE_LIMIT: usize = 16 << 20;

/// Takes a message field that must be there.
pub(crate) fn required<T>(field: Option<T>, name: &str) -> Result<T, Status> {
    field.ok_or_else(|| Status::invalid_argument(format!("{name} is required")))
}

/// Reads the filters of a request.
pub(crate) fn filters(texts: &[String]) -> Result<Filters, Status> {
    Filters::parse(texts).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// Sets the message limits of a generated server.
macro_rules! limited {
    ($server:expr) => {
        $server
            .max_decoding_message_size($crate::api::MESSAGE_LIMIT)
            .max_encoding_message_size($crate::api::MESSAGE_LIMIT)
    };
}
pub(crate) use limited;
