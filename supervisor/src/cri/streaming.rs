use crate::failure::Failure;
use proto::{kind::ErrorKind, runtime::v1 as cri};
use std::path::PathBuf;
#[derive(Debug, thiserror::Error)]
#[error("no streaming")]
pub(crate) struct StreamingError;
impl Failure for StreamingError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Unimplemented
    }
}
pub(super) struct Target {
    pub(super) id: String,
    pub(super) process: serde_json::Value,
    pub(super) tty: bool,
    pub(super) stdin: bool,
    pub(super) stdin_once: bool,
}
pub(crate) struct Streaming;
impl Streaming {
    pub(crate) async fn start(
        _: &crate::config::Config,
        _: std::sync::Arc<crate::tasks::Tasks>,
    ) -> Result<std::sync::Arc<Self>, StreamingError> {
        Ok(std::sync::Arc::new(Self))
    }
    pub(super) fn exec_url(&self, _: Target, _: cri::ExecRequest) -> Result<String, StreamingError> {
        Err(StreamingError)
    }
    pub(super) fn attach_url(&self, _: Target, _: cri::AttachRequest) -> Result<String, StreamingError> {
        Err(StreamingError)
    }
    pub(super) fn port_forward_url(
        &self,
        _: Option<PathBuf>,
        _: cri::PortForwardRequest,
    ) -> Result<String, StreamingError> {
        Err(StreamingError)
    }
    pub(super) async fn exec_sync(
        &self,
        _: Target,
        _: cri::ExecSyncRequest,
    ) -> Result<cri::ExecSyncResponse, StreamingError> {
        Err(StreamingError)
    }
}
