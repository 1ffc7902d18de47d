//! What two of Berth's processes must agree on: protocol messages and names. No I/O, but for `ttrpc`, which is a feature.

mod cri;
pub mod digest;
pub mod fault;
pub mod id;
pub mod image_ref;
pub mod journal;
pub mod kind;
pub mod oom;
#[cfg(feature = "tls")]
pub mod proxy;
pub mod stdio;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(any(feature = "ttrpc", test))]
pub mod ttrpc;
pub mod typeurl;

#[allow(missing_docs, unreachable_pub, dead_code, clippy::all, rustdoc::all)]
#[rustfmt::skip]
mod generated {
    include!("gen/mod.rs");
}
pub use generated::{berth, containerd, fsutil, google, grpc, io, moby, nri, pb, runtime, runtimeoptions};
