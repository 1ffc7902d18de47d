//! What an OCI specification is made of, whoever asks for the container: docker's client or the kubelet. What only one of
//! them means by its words is in engine and supervisor.

pub mod apparmor;
pub mod caps;
pub mod cdi;
pub mod devices;
pub mod init;
pub mod kernel;
pub mod propagation;
pub mod seccomp;
pub mod signal;
pub mod users;
