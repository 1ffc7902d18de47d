//! Does what builds consist of.

pub mod content;
pub mod files;
mod sources;
