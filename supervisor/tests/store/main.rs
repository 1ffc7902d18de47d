//! The stores of a real supervisor over its socket: with containerd's own client, a real registry, and hostile ones.

mod archives;
mod bad;
mod clients;
mod harness;
mod registries;
