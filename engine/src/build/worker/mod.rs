//! Does what builds consist of.

pub mod content;
pub mod files;
pub mod layered;
pub mod sources;
