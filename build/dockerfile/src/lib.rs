//! Dockerfiles, by the published syntax (docs.docker.com, reference/dockerfile): [`parse`] reads one, [`instruction`] is what
//! it says, [`expand`] fills in its variables, [`lint`] has opinions, [`convert`] makes LLB of it. Pure: what has to be asked
//! of the world (configurations of images) goes through [`convert::Resolver`].

pub mod convert;
pub mod error;
pub mod expand;
pub mod instruction;
pub mod lint;
pub mod parse;
mod suggest;

pub use error::Error;
pub use instruction::Dockerfile;
