//! `inspect`, for everything that has a name.

use super::{App, load::platform_json, require};
use crate::args::{container, image, system, volume};
use crate::client::{Call, Client, ClientError, call::escape};
use crate::exit::{Failure, Outcome};
use crate::output::template::{Context, Template};
use crate::output::{self, json, value::Value};

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Container { size: bool },
    Image,
    Network { verbose: bool },
    Volume,
    Service,
    Task,
    Node,
    Plugin,
    Secret,
    Config,
}

/// Runs `inspect`: whatever has that name.
pub async fn any(app: &App, args: &system::InspectArgs) -> Outcome {
    let container = Kind::Container { size: args.size };
    let network = Kind::Network { verbose: false };
    let all = [
        ("container", container),
        ("image", Kind::Image),
        ("network", network),
        ("volume", Kind::Volume),
        ("service", Kind::Service),
        ("task", Kind::Task),
        ("node", Kind::Node),
        ("plugin", Kind::Plugin),
        ("secret", Kind::Secret),
        ("config", Kind::Config),
    ];
    let wanted = args.r#type.as_deref().unwrap_or_default();
    let kinds: Vec<Kind> =
        all.iter().filter(|(name, _)| wanted.is_empty() || *name == wanted).map(|(_, kind)| *kind).collect();
    if kinds.is_empty() {
        let mut names: Vec<String> = all.iter().map(|(name, _)| format!("{name:?}")).collect();
        names.sort();
        let text = format!("unknown type: {wanted:?}: must be one of {}", names.join(", "));
        return Err(Failure::Refused(text));
    }
    let client = app.client().await?;
    let mut found = Found::new(args.format.as_deref())?;
    for name in &args.names {
        let mut result = Err(None);
        for kind in &kinds {
            match get(&client, *kind, name).await {
                Ok(value) => {
                    result = Ok(value);
                    break;
                }
                // An engine without swarms or plugins has no such object either.
                Err(error) if kinds.len() > 1 && (error.is_not_found() || kind.is_rare() && error.is_refusal()) => {}
                Err(error) => {
                    result = Err(Some(error));
                    break;
                }
            }
        }
        match result {
            Ok(value) => found.add(value)?,
            Err(Some(error)) => found.errors.push(error.to_string()),
            Err(None) => found.errors.push(format!("Error: No such object: {name}")),
        }
    }
    found.print()
}

/// Runs `container inspect`.
pub async fn containers(app: &App, args: &container::InspectArgs) -> Outcome {
    let client = app.client().await?;
    each(&client, Kind::Container { size: args.size }, &args.containers, args.format.as_deref(), None).await
}

/// Runs `image inspect`.
pub async fn images(app: &App, args: &image::InspectArgs) -> Outcome {
    let client = app.client().await?;
    require(&client, "--platform", args.platform.is_some(), 49)?;
    let platform = args.platform.as_deref().map(|p| platform_json(p).to_string());
    each(&client, Kind::Image, &args.images, args.format.as_deref(), platform).await
}

/// Runs `network inspect`.
pub async fn networks(app: &App, args: &system::NetworkInspectArgs) -> Outcome {
    let client = app.client().await?;
    each(&client, Kind::Network { verbose: args.verbose }, &args.networks, args.format.as_deref(), None).await
}

/// Runs `volume inspect`.
pub async fn volumes(app: &App, args: &volume::InspectArgs) -> Outcome {
    let client = app.client().await?;
    each(&client, Kind::Volume, &args.volumes, args.format.as_deref(), None).await
}

impl Kind {
    /// Not every engine knows these.
    fn is_rare(self) -> bool {
        !matches!(self, Self::Container { .. } | Self::Image | Self::Network { .. } | Self::Volume)
    }
}

async fn each(
    client: &Client,
    kind: Kind,
    names: &[String],
    format: Option<&str>,
    platform: Option<String>,
) -> Outcome {
    let mut found = Found::new(format)?;
    for name in names {
        match fetch(client, kind, name, platform.as_deref()).await {
            Ok(value) => found.add(value)?,
            Err(error) => found.errors.push(error.to_string()),
        }
    }
    found.print()
}

async fn get(client: &Client, kind: Kind, name: &str) -> Result<Value, ClientError> {
    fetch(client, kind, name, None).await
}

async fn fetch(client: &Client, kind: Kind, name: &str, platform: Option<&str>) -> Result<Value, ClientError> {
    let call = match kind {
        Kind::Container { size } => Call::get(format!("/containers/{}/json", escape(name, false))).switch("size", size),
        Kind::Image => Call::get(format!("/images/{}/json", escape(name, true))).maybe("platform", platform),
        Kind::Network { verbose } => Call::get(format!("/networks/{}", escape(name, false))).switch("verbose", verbose),
        Kind::Volume => Call::get(format!("/volumes/{}", escape(name, false))),
        Kind::Service => Call::get(format!("/services/{}", escape(name, false))),
        Kind::Task => Call::get(format!("/tasks/{}", escape(name, false))),
        Kind::Node => Call::get(format!("/nodes/{}", escape(name, false))),
        Kind::Plugin => Call::get(format!("/plugins/{}/json", escape(name, true))),
        Kind::Secret => Call::get(format!("/secrets/{}", escape(name, false))),
        Kind::Config => Call::get(format!("/configs/{}", escape(name, false))),
    };
    client.send(call).await?.value().await
}

/// What was found, and what was not.
struct Found {
    format: Format,
    values: Vec<Value>,
    text: String,
    errors: Vec<String>,
}

enum Format {
    /// One JSON array over several lines.
    Array,
    /// One JSON value per line.
    Json,
    /// A template per object.
    Template(Template),
}

impl Found {
    fn new(format: Option<&str>) -> Outcome<Self> {
        let format = match format {
            None | Some("") => Format::Array,
            Some("json") => Format::Json,
            Some(text) => Format::Template(Template::parse(text)?),
        };
        Ok(Self { format, values: Vec::new(), text: String::new(), errors: Vec::new() })
    }

    fn add(&mut self, value: Value) -> Outcome {
        match &self.format {
            Format::Array | Format::Json => self.values.push(value),
            Format::Template(template) => match template.execute(&Context { fields: value, labels: Value::Null }) {
                Ok(line) => {
                    self.text.push_str(&line);
                    self.text.push('\n');
                }
                Err(error) => self.errors.push(Failure::from(error).to_string()),
            },
        }
        Ok(())
    }

    fn print(self) -> Outcome {
        match self.format {
            Format::Array => output::print_line(&json::pretty(&Value::Array(self.values)))?,
            // docker prints one array here as well.
            Format::Json => output::print_line(&json::line(&Value::Array(self.values)))?,
            // An empty line where nothing was found is docker's, too: scripts that count lines rely on it.
            Format::Template(_) if self.text.is_empty() => output::print_line("")?,
            Format::Template(_) => output::print(&self.text)?,
        }
        if self.errors.is_empty() { Ok(()) } else { Err(Failure::Several(self.errors)) }
    }
}
