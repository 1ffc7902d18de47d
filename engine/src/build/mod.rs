//! Builds of images: `/build`, and BuildKit's API over `/grpc` and `/session`.
//!
//! [`frontend`] makes LLB of a Dockerfile (crate `dockerfile`), crate `solver` finds out what of it has to be done, [`worker`] does
//! that on filesystems ([`tree`]), [`export`] makes images, archives and folders of the result. Files, secrets and credentials of
//! the client come over its [`session`].

mod api;
mod export;
mod frontend;
pub mod session;
#[cfg(test)]
mod tests;
mod tree;
mod worker;
