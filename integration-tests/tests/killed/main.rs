//! SIGKILL of the supervisor, of the engine and of both at every named point of theirs: the operation that was under way succeeds
//! when it is repeated, states are true, and nothing is left.
//!
//! The points are read from the sources, so the walk can't be incomplete; a point that no operation here passes fails it.

mod commits;
mod life;
mod networks;
mod pulls;
mod restarts;
mod walk;
