//! Solves builds: takes a graph of operations ([`proto::pb::Definition`]), finds out what is known already, and has the rest done
//! by a [`Worker`], all at once that doesn't wait for something else.
//!
//! Knows nothing of images, containers or files: those are the worker's. Keeps an index of what was made (`redb`), so that the
//! next build, by whomever, finds it.
//!
//! ```text
//! Definition -> graph (checked) -> solve: keys -> index: known? -> find
//!                                              \-> no: flight (shared by builds): perform -> keep -> record
//! ```

mod counts;
mod flight;
pub mod graph;
pub mod index;
pub mod keys;
pub mod progress;
pub mod prune;
pub mod remote;
mod solve;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod worker;

pub use counts::Figures;
pub use graph::{Graph, GraphError};
pub use index::{Index, IndexError};
pub use progress::{Board, Listener};
pub use prune::{PruneError, PruneOptions};
pub use remote::{Exporter, Imported, Layer};
pub use solve::{Build, BuildOptions, KnownResult, Options, SolveError, Solved, Solver};
pub use worker::{CacheMount, Kept, Pin, Selection, Step, StepError, Work, Worker};
