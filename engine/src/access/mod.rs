//! Who may do what over the engine's socket, and a trail of what was done. Without rules whoever may open the socket may do
//! all, as with docker.
//!
//! `peer` says who is on the other end, `rules` decides (pure), `body` looks at what a user wants to create, `gate` stands between
//! HTTP and the routes, `audit` keeps the trail. A decision is about the very request that is routed afterwards: path, query
//! and body are decoded once, checked, and written anew from what was checked, so that nothing that reads them differently can
//! be slipped past (CVE-2024-41110, CVE-2026-34040: a body that the check did not see).

mod audit;
mod body;
mod gate;
mod peer;
mod rules;

pub use gate::{Gate, Passage};

use crate::api::{Config, HostConfig};
use audit::AuditError;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Annotation, and label, of what a user with rule "own" has made: the user's id.
pub const OWNER: &str = "berth.owner.uid";

/// What the configuration says about access.
#[derive(Debug, Clone, Default)]
pub struct AccessConfig {
    /// The first rule that names a user decides; a user whom none names is refused. No rules: everybody may do all.
    pub rules: Vec<Rule>,
    /// Where the trail is kept, if one is wanted.
    pub audit: Option<PathBuf>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rule {
    /// Names or numbers of users.
    #[serde(default)]
    pub users: Vec<String>,
    /// Names or numbers of groups.
    #[serde(default)]
    pub groups: Vec<String>,
    /// What they may do.
    pub allow: Allow,
}

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Allow {
    /// Everything, which is as much as root may.
    All,
    /// Look, but not into the files of containers.
    ReadOnly,
    /// Run containers that can't reach the host, and do with them what one likes; see nothing of others' containers.
    Own,
}

impl Allow {
    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::ReadOnly => "read-only",
            Self::Own => "own",
        }
    }
}

/// `audit = true` or `audit = "/path"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Audit {
    /// In the data root, or not at all.
    Switch(bool),
    /// There.
    Path(PathBuf),
}

/// Why the rules don't do.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("access rule {0} names neither users nor groups")]
    Nobody(usize),
    #[error("audit {0} is not an absolute path")]
    Relative(PathBuf),
    #[error("audit trail")]
    Audit(#[source] AuditError),
}

impl AccessConfig {
    /// Checks what the file says.
    pub fn new(rules: Vec<Rule>, audit: Option<Audit>, data_root: &Path) -> Result<Self, AccessError> {
        if let Some(number) = rules.iter().position(|rule| rule.users.is_empty() && rule.groups.is_empty()) {
            return Err(AccessError::Nobody(number + 1));
        }
        let audit = match audit {
            None | Some(Audit::Switch(false)) => None,
            Some(Audit::Switch(true)) => Some(data_root.join("audit.log")),
            Some(Audit::Path(path)) if path.is_absolute() => Some(path),
            Some(Audit::Path(path)) => return Err(AccessError::Relative(path)),
        };
        Ok(Self { rules, audit })
    }
}

/// Labels of images become those of containers: none of them may say whose a container is. The annotation can't come from an
/// image, so the label follows it.
pub fn settle_owner(config: &mut Config, host: &HostConfig) {
    match host.annotations.get(OWNER) {
        Some(owner) => config.labels.insert(OWNER.to_owned(), owner.clone()),
        None => config.labels.remove(OWNER),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_images_give_nobody_a_container() {
        let (mut config, mut host) = (Config::default(), HostConfig::default());
        config.labels.insert(OWNER.into(), "1000".into());
        settle_owner(&mut config, &host);
        assert!(config.labels.is_empty());
        host.annotations.insert(OWNER.into(), "7".into());
        settle_owner(&mut config, &host);
        assert_eq!(config.labels[OWNER], "7");
    }

    #[test]
    fn configuration() {
        #[derive(Deserialize)]
        struct File {
            access: Vec<Rule>,
            audit: Option<Audit>,
        }
        let file: File = toml::from_str(
            "audit = true\n[[access]]\nusers = ['root', '1000']\nallow = 'all'\n[[access]]\ngroups = ['ops']\nallow = 'read-only'\n",
        )
        .unwrap();
        assert_eq!((file.access[0].allow, file.access[1].groups[0].as_str()), (Allow::All, "ops"));
        let config = AccessConfig::new(file.access.clone(), file.audit, Path::new("/d")).unwrap();
        assert_eq!(config.audit.as_deref(), Some(Path::new("/d/audit.log")));
        assert!(AccessConfig::new(file.access, Some(Audit::Path("x".into())), Path::new("/d")).is_err());
        let nobody = Rule { users: vec![], groups: vec![], allow: Allow::All };
        assert!(AccessConfig::new(vec![nobody], None, Path::new("/d")).is_err());
        assert!(toml::from_str::<File>("[[access]]\nusers = ['a']\nallow = 'some'\n").is_err());
    }
}
