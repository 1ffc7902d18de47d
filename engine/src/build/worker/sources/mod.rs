//! What comes from outside: images, folders of the client, git, URLs.

pub mod local;
pub mod image;
