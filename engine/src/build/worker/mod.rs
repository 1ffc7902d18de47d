//! Does what builds consist of.

mod sources;
