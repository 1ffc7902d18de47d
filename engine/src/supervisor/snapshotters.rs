//! Which snapshotters the supervisor has, and which of them holds what the engine makes from now on (docker: the storage
//! driver). What was made in another one stays there: a container's record says in which.

use super::{Client, SupervisorError};
use proto::containerd::services::introspection::v1::{Plugin, PluginsRequest};

const KIND: &str = "io.containerd.snapshotter.v1";
/// What a peer that says nothing of a default has: containerd's own.
const DEFAULT: &str = "overlayfs";
/// How a peer ends its words about a plugin that isn't for this machine.
const SKIPPED: &str = ": skip plugin";

/// Why no snapshotter could be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// It could not be asked.
    #[error("ask for its snapshotters")]
    List(#[source] SupervisorError),
    /// Nothing is called so.
    #[error("use storage driver {name:?}: there is no snapshotter of that name; {cure}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What to do.
        cure: String,
    },
    /// It is there and doesn't work.
    #[error("use storage driver {name:?}: its snapshotter is not loaded ({reason}); {cure}")]
    Skipped {
        /// What was asked for, or the default.
        name: String,
        /// The supervisor's words.
        reason: String,
        /// What to do.
        cure: String,
    },
}

/// The snapshotters of a supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshotters {
    /// Holds what is made from now on.
    pub chosen: String,
    /// All that work; older containers may be in any.
    pub loaded: Vec<String>,
}

impl Default for Snapshotters {
    /// Before anybody was asked.
    fn default() -> Self {
        Self { chosen: DEFAULT.into(), loaded: vec![DEFAULT.into()] }
    }
}

impl Snapshotters {
    /// Asks the supervisor; `wanted` or else its default is chosen.
    pub async fn choose(client: &Client, wanted: Option<&str>) -> Result<Self, DriverError> {
        let request = PluginsRequest { filters: vec![format!("type=={KIND}")] };
        let call = |client: Client, request| async move { client.introspection().plugins(request).await };
        let plugins = client.retry(request, call).await.map_err(DriverError::List)?.plugins;
        Self::of(&plugins, wanted)
    }

    fn of(plugins: &[Plugin], wanted: Option<&str>) -> Result<Self, DriverError> {
        let plugins: Vec<&Plugin> = plugins.iter().filter(|plugin| plugin.r#type == KIND).collect();
        let is_default = |plugin: &&&Plugin| plugin.exports.get("default").is_some_and(|value| value == "true");
        let name = wanted.or_else(|| plugins.iter().find(is_default).map(|plugin| plugin.id.as_str()));
        let name = name.unwrap_or(DEFAULT).to_owned();
        let works = |plugin: &&&Plugin| plugin.init_err.is_none();
        let loaded: Vec<String> = plugins.iter().filter(works).map(|plugin| plugin.id.clone()).collect();
        if loaded.contains(&name) {
            return Ok(Self { chosen: name, loaded });
        }
        let cure = match loaded.as_slice() {
            [] => "none is loaded: see the supervisor's log".to_owned(),
            names => format!("choose {} with --storage-driver", names.join(" or ")),
        };
        let failure = plugins.iter().find(|plugin| plugin.id == name).and_then(|plugin| plugin.init_err.as_ref());
        Err(match failure {
            Some(error) => {
                let reason = error.message.replace(['\n', '\r'], " ");
                let reason = reason.strip_suffix(SKIPPED).unwrap_or(&reason).to_owned();
                DriverError::Skipped { name, reason, cure }
            }
            None => DriverError::Unknown { name, cure },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::google::rpc::Status;

    fn plugin(id: &str, default: bool, failure: Option<&str>) -> Plugin {
        Plugin {
            r#type: KIND.into(),
            id: id.into(),
            exports: default.then(|| ("default".to_owned(), "true".to_owned())).into_iter().collect(),
            init_err: failure.map(|message| Status { code: 12, message: message.into(), details: Vec::new() }),
            ..Plugin::default()
        }
    }

    #[test]
    fn the_one_asked_for_else_the_default_of_the_peer() {
        let other = Plugin { r#type: "io.containerd.differ.v1".into(), ..plugin("walking", true, None) };
        let berth = [
            plugin("overlayfs", false, None),
            plugin("native", true, None),
            plugin("btrfs", false, Some("no btrfs: skip plugin")),
            other,
        ];
        let containerd = [plugin("native", false, None), plugin("overlayfs", false, None)];
        let chosen = |plugins: &[Plugin], wanted| Snapshotters::of(plugins, wanted).map(|found| found.chosen);
        assert_eq!(chosen(&berth, None).as_deref(), Ok("native"));
        assert_eq!(chosen(&berth, Some("overlayfs")).as_deref(), Ok("overlayfs"));
        assert_eq!(chosen(&containerd, None).as_deref(), Ok("overlayfs"));
        assert_eq!(chosen(&containerd, Some("native")).as_deref(), Ok("native"));
        assert_eq!(Snapshotters::of(&berth, None).unwrap().loaded, ["overlayfs", "native"]);
    }

    #[test]
    fn refusals_name_what_there_is() {
        let plugins = [
            plugin("overlayfs", true, None),
            plugin("native", false, None),
            plugin("btrfs", false, Some("/d is not\non btrfs: skip plugin")),
        ];
        let said = |plugins: &[Plugin], wanted| Snapshotters::of(plugins, wanted).unwrap_err().to_string();
        let cure = "choose overlayfs or native with --storage-driver";
        let unknown = "there is no snapshotter of that name";
        assert_eq!(said(&plugins, Some("overlay2")), format!("use storage driver \"overlay2\": {unknown}; {cure}"));
        let unusable = format!("its snapshotter is not loaded (/d is not on btrfs); {cure}");
        assert_eq!(said(&plugins, Some("btrfs")), format!("use storage driver \"btrfs\": {unusable}"));
        let broken = [plugin("overlayfs", false, Some("no overlay")), plugin("native", false, None)];
        assert!(said(&broken, None).contains("(no overlay); choose native with"), "{}", said(&broken, None));
        assert!(said(&[], None).ends_with("none is loaded: see the supervisor's log"), "{}", said(&[], None));
    }
}
