//! Folders on their way between a client of a build and its builder, by the protocol of tonistiigi/fsutil
//! ([`proto::fsutil::types`]): a client sends its context, a builder sends back results. [`patterns`] decides what goes along.

pub mod patterns;
pub mod receive;
pub mod send;
