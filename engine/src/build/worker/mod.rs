//! Does what builds consist of.

pub mod files;
mod sources;
