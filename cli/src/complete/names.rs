//! Names that exist, for completions and for "did you mean".

use crate::client::{Call, Client};
use crate::config::Config;
use crate::context::DEFAULT;
use crate::output::value::Value;
use std::time::Duration;

/// Nobody waits longer for a completion.
const PATIENCE: Duration = Duration::from_secs(2);

/// Which containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum States {
    /// All of them.
    Any,
    /// Those that run.
    Running,
    /// Those that are paused.
    Paused,
    /// Those that don't run.
    Startable,
}

/// Of what the names are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Containers in a state.
    Container(States),
    /// Containers, with a colon after the name, or files.
    ContainerOrFile,
    /// Images.
    Image,
    /// Networks.
    Network,
    /// Volumes.
    Volume,
    /// Contexts.
    Context,
    /// Containers, images, networks and volumes.
    Any,
}

/// Names with what they mean; none where nobody answers in time.
pub async fn of(config: &Config, kind: &Kind) -> Vec<(String, String)> {
    if *kind == Kind::Context {
        let stored = config.contexts().map(|store| store.names()).unwrap_or_default();
        return stored.into_iter().chain([DEFAULT.to_owned()]).map(|name| (name, String::new())).collect();
    }
    tokio::time::timeout(PATIENCE, asked(config, kind)).await.ok().flatten().unwrap_or_default()
}

async fn asked(config: &Config, kind: &Kind) -> Option<Vec<(String, String)>> {
    let client = Client::connect(config.endpoint().ok()?, config.api_version).await.ok()?;
    let mut names = Vec::new();
    match kind {
        Kind::Container(states) => names.extend(containers(&client, *states).await),
        Kind::ContainerOrFile => {
            let found = containers(&client, States::Any).await;
            names.extend(found.into_iter().map(|(name, about)| (format!("{name}:"), about)));
        }
        Kind::Image => names.extend(images(&client).await),
        Kind::Network => names.extend(networks(&client).await),
        Kind::Volume => names.extend(volumes(&client).await),
        Kind::Context => {}
        Kind::Any => {
            names.extend(containers(&client, States::Any).await);
            names.extend(images(&client).await);
            names.extend(networks(&client).await);
            names.extend(volumes(&client).await);
        }
    }
    Some(names)
}

async fn get(client: &Client, call: Call) -> Value {
    match client.send(call).await {
        Ok(reply) => reply.value().await.unwrap_or_default(),
        Err(_) => Value::Null,
    }
}

async fn containers(client: &Client, states: States) -> Vec<(String, String)> {
    let wanted: &[&str] = match states {
        States::Any => &[],
        States::Running => &["running"],
        States::Paused => &["paused"],
        States::Startable => &["created", "exited"],
    };
    let filters: Vec<(String, String)> =
        wanted.iter().map(|state| ("status".to_owned(), (*state).to_owned())).collect();
    let all = get(client, Call::get("/containers/json").switch("all", true).filters(&filters)).await;
    let named = |container: &Value| {
        let name = container.get("Names")?.items().first()?.as_str()?.trim_start_matches('/').to_owned();
        Some((name, container.text(&["Image"]).to_owned()))
    };
    all.items().iter().filter_map(named).collect()
}

async fn images(client: &Client) -> Vec<(String, String)> {
    let all = get(client, Call::get("/images/json")).await;
    let tags = all.items().iter().flat_map(|image| image.get("RepoTags").map(Value::items).unwrap_or_default());
    let tags = tags.filter_map(Value::as_str).filter(|tag| !tag.contains("<none>"));
    tags.map(|tag| (tag.strip_suffix(":latest").unwrap_or(tag).to_owned(), String::new())).collect()
}

async fn networks(client: &Client) -> Vec<(String, String)> {
    let all = get(client, Call::get("/networks")).await;
    let pair = |n: &Value| (n.text(&["Name"]).to_owned(), n.text(&["Driver"]).to_owned());
    all.items().iter().map(pair).filter(|(name, _)| !name.is_empty()).collect()
}

async fn volumes(client: &Client) -> Vec<(String, String)> {
    let all = get(client, Call::get("/volumes")).await;
    let items = all.get("Volumes").map(Value::items).unwrap_or_default();
    items.iter().map(|v| (v.text(&["Name"]).to_owned(), v.text(&["Driver"]).to_owned())).collect()
}
