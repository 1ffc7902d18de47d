//! Does what builds consist of.

pub mod caches;
pub mod content;
pub mod files;
pub mod layered;
pub mod run;
pub mod sources;
pub mod whole;
