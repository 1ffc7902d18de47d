use std::{collections::HashMap, net::IpAddr, path::PathBuf, sync::Arc};
use proto::{kind::ErrorKind, runtime::v1 as cri};
use crate::{config::Config, failure::Failure};
#[derive(Debug, thiserror::Error)]
#[error("no cni")]
pub(crate) struct CniError;
impl Failure for CniError { fn kind(&self) -> ErrorKind { ErrorKind::Unimplemented } }
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct Attachment {}
impl Attachment { pub(super) fn addresses(&self) -> Vec<IpAddr> { vec![] } }
pub(super) struct Pod { pub(super) id: String, pub(super) netns: PathBuf, pub(super) name: String, pub(super) namespace: String, pub(super) uid: String, pub(super) port_mappings: Vec<cri::PortMapping>, pub(super) annotations: HashMap<String, String>, pub(super) cgroup_parent: String, pub(super) dns: cri::DnsConfig }
pub(crate) struct Cni;
impl Cni {
    pub(crate) fn new(_: &Config) -> Arc<Self> { Arc::new(Self) }
    pub(super) fn ready(&self) -> Result<(), String> { Err("stub".into()) }
    pub(super) async fn add(&self, _: &Pod) -> Result<Attachment, CniError> { Err(CniError) }
    pub(super) async fn del(&self, _: &Pod, _: Option<&Attachment>) -> Result<(), CniError> { Ok(()) }
}
