//! Who answers on this socket.

use proto::containerd::services::version::v1::{VersionResponse, version_server};
use tonic::{Request, Response, Status};

/// The level of containerd's API that clients may expect, and behind the plus sign who really answers: clients compare the
/// number to decide what they may call, so it has to be one they know.
pub(crate) const VERSION: &str = concat!("2.0.0+berth-", env!("CARGO_PKG_VERSION"));

/// `containerd.services.version.v1.Version`.
pub(crate) struct VersionService;

#[tonic::async_trait]
impl version_server::Version for VersionService {
    async fn version(&self, _: Request<()>) -> Result<Response<VersionResponse>, Status> {
        // The build system may put a commit here; without one the field is empty, as in containerd's own development builds.
        let revision = option_env!("BERTH_REVISION").unwrap_or_default();
        Ok(Response::new(VersionResponse { version: VERSION.into(), revision: revision.into() }))
    }
}
