//! The words of Docker's API about containers, as clients write them and read them back. No rules here.

pub mod config;
pub mod host_config;
pub mod serial;

pub use config::{Config, CreateRequest};
pub use host_config::{HostConfig, LogConfig, Mount, PortBinding, RestartPolicy, Ulimit};
