//! BuildKit's services and docker's own endpoints.

mod caps;
mod classic;
mod control;
mod gateway;
pub mod grpc;
pub mod http;
mod status;
pub mod workers;

#[cfg(test)]
mod tests;
