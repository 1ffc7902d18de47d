//! Where builds begin: what is fetched from outside.

pub mod git;
pub mod http;
#[cfg(test)]
pub(crate) mod testing;
