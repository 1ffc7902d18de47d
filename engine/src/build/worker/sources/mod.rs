//! What comes from outside: images, folders of the client, git, URLs.

pub mod git;
pub mod http;
pub mod image;
pub mod local;
#[cfg(test)]
pub(crate) mod testing;
