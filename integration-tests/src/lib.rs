//! The harness: real stacks of Berth's programs, each with roots, a bridge and a subnet of its own, so that tests run
//! side by side; clients to drive them; and a look at what they leave behind.
//!
//! A failure panics with the command, its output and the logs of both daemons: these are tests' tools.

pub mod audit;
pub mod caller;
pub mod command;
pub mod dice;
pub mod dns;
pub mod dockerd;
pub mod eventually;
pub mod faults;
pub mod firewalls;
pub mod host;
pub mod http;
pub mod images;
pub mod kubelet;
pub mod leftovers;
pub mod nri;
pub mod programs;
pub mod registry;
pub mod stack;
pub mod tables;

pub use command::{Outcome, run, run_with};
pub use dice::Dice;
pub use eventually::{eventually, eventually_within};
pub use stack::{Daemon, Stack};
