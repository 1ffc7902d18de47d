//! Solves builds: takes a graph of operations ([`proto::pb::Definition`]), finds out what is known already, and has the rest done
//! by a [`Worker`], all at once that doesn't wait for something else.
//!
//! Knows nothing of images, containers or files: those are the worker's. Keeps an index of what was made (`redb`), so that the
//! next build, by whomever, finds it.

pub mod worker;

pub use worker::{Kept, Pin, Selection, Step, StepError, Work, Worker};
