//! Does what builds consist of.

pub mod caches;
pub mod run;
mod sources;
