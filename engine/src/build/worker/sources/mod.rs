//! What comes from outside: images, folders of the client, git, URLs.

pub mod image;
pub mod local;
