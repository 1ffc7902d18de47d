//! Folders on their way between a client of a build and its builder, by the protocol of tonistiigi/fsutil
//! ([`proto::fsutil::types`]): a client sends its context, a builder sends back results. [`patterns`] decides what goes along.
//!
//! ```text
//! sender                                   receiver
//!   STAT, STAT, ... STAT without a stat  ─▶  in order of paths, '/' before all other bytes
//!                                   ◀─ REQ    number of the STAT: its content is wanted
//!   DATA, DATA, ... DATA without data    ─▶  several files at once
//!                                   ◀─ FIN    nothing more is wanted
//!   FIN                                  ─▶
//!   ERR either way: the end
//! ```

pub mod index;
pub mod mode;
pub mod patterns;
pub mod receive;
pub mod send;
mod walk;
