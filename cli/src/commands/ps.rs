//! `ps`

use super::App;
use crate::args::container::PsArgs;
use crate::client::Call;
use crate::exit::Outcome;
use crate::output::listing::{self, Layout};
use crate::output::template::Context;
use crate::output::value::Value;
use crate::output::{self, json, time, units};
use serde::Deserialize;
use std::collections::BTreeMap;

/// A container, as lists have it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Summary {
    #[serde(rename = "Id")]
    id: String,
    #[serde(rename = "Names")]
    names: Option<Vec<String>>,
    #[serde(rename = "Image")]
    image: String,
    #[serde(rename = "ImageID")]
    image_id: String,
    #[serde(rename = "Command")]
    command: String,
    #[serde(rename = "Created")]
    created: i64,
    #[serde(rename = "Ports")]
    ports: Option<Vec<Port>>,
    /// Bytes it has written.
    #[serde(rename = "SizeRw")]
    pub size_rw: i64,
    /// The same and its image.
    #[serde(rename = "SizeRootFs")]
    pub size_root_fs: i64,
    #[serde(rename = "Labels")]
    labels: Option<BTreeMap<String, String>>,
    /// "running" and others.
    #[serde(rename = "State")]
    pub state: String,
    #[serde(rename = "Status")]
    status: String,
    #[serde(rename = "NetworkSettings")]
    network_settings: Option<NetworkSettings>,
    #[serde(rename = "Mounts")]
    mounts: Option<Vec<Mount>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NetworkSettings {
    #[serde(rename = "Networks")]
    networks: Option<BTreeMap<String, Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Mount {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "Source")]
    source: String,
    #[serde(rename = "Driver")]
    driver: String,
}

#[derive(Debug, Clone, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(default)]
struct Port {
    #[serde(rename = "PrivatePort")]
    inner: u16,
    #[serde(rename = "IP")]
    ip: String,
    #[serde(rename = "PublicPort")]
    outer: u16,
    #[serde(rename = "Type")]
    protocol: String,
}

const COLUMNS: &str = "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}";

/// Titles of its fields.
pub const TITLES: &[(&str, &str)] = &[
    ("ID", "CONTAINER ID"),
    ("Names", "NAMES"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("RunningFor", "CREATED"),
    ("Ports", "PORTS"),
    ("State", "STATE"),
    ("Status", "STATUS"),
    ("Size", "SIZE"),
    ("Labels", "LABELS"),
    ("Mounts", "MOUNTS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Networks", "NETWORKS"),
    ("Platform", "PLATFORM"),
];

/// Runs `ps`.
pub async fn run(app: &App, args: &PsArgs) -> Outcome {
    let format = args.format.as_deref().or(if args.quiet { None } else { app.config.ps_format() });
    // Sizes cost the engine a walk over the files: they are asked for when they are shown.
    let size = args.size || format.is_some_and(|f| f.contains(".Size") || f.contains("{{json .}}"));
    let last = if args.latest && args.last == -1 { 1 } else { args.last };
    let call = Call::get("/containers/json")
        .switch("all", args.all)
        .maybe("limit", (last > 0).then(|| last.to_string()))
        .switch("size", size)
        .filters(&args.filter);
    let containers: Vec<Summary> = app.client().await?.send(call).await?.json().await?;
    let columns = format!("{COLUMNS}{}", if args.size { "\t{{.Size}}" } else { "" });
    let layout = Layout { columns: &columns, titles: TITLES, quiet: "{{.ID}}" };
    let now = time::now();
    let rows: Vec<Context> = containers.iter().map(|c| row(c, !args.no_trunc, size, now)).collect();
    output::print(&listing::render(&layout, format, args.quiet, &rows)?)
}

/// Its fields.
pub fn row(container: &Summary, short: bool, size: bool, now: i64) -> Context {
    let id = if short { units::short_id(&container.id) } else { &container.id };
    let command = if short { units::ellipsis(&container.command, 20) } else { container.command.clone() };
    let networks = container.network_settings.as_ref().and_then(|s| s.networks.as_ref());
    let mounts = container.mounts.as_deref().unwrap_or_default();
    let mount = |m: &Mount| {
        let name = if m.name.is_empty() { &m.source } else { &m.name };
        if short { units::ellipsis(name, 15) } else { name.clone() }
    };
    let labels = container.labels.clone().unwrap_or_default();
    let fields = Value::object([
        ("ID", id.into()),
        ("Names", names(container, short).into()),
        ("Image", image(container, short).into()),
        ("Command", json::line(&command.into()).into()),
        ("CreatedAt", time::go_time(container.created).into()),
        ("RunningFor", format!("{} ago", units::duration(now.saturating_sub(container.created))).into()),
        ("Ports", ports(container.ports.as_deref().unwrap_or_default()).into()),
        ("State", container.state.as_str().into()),
        ("Status", container.status.as_str().into()),
        ("Size", if size { sizes(container).into() } else { "0B".into() }),
        ("Labels", labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",").into()),
        ("Mounts", mounts.iter().map(mount).collect::<Vec<_>>().join(",").into()),
        ("LocalVolumes", mounts.iter().filter(|m| m.driver == "local").count().to_string().into()),
        ("Networks", networks.map(|n| n.keys().cloned().collect::<Vec<_>>().join(",")).unwrap_or_default().into()),
        ("Platform", Value::Null),
    ]);
    Context { fields, labels: Value::Object(labels.into_iter().map(|(k, v)| (k, v.into())).collect()) }
}

/// Names without their slash; shortened, without the ones that links add ("/other/alias").
fn names(container: &Summary, short: bool) -> String {
    let all = container.names.iter().flatten().map(|name| name.strip_prefix('/').unwrap_or(name));
    all.filter(|name| !short || !name.contains('/')).collect::<Vec<_>>().join(",")
}

fn image(container: &Summary, short: bool) -> String {
    if container.image.is_empty() {
        return "<no image>".to_owned();
    }
    if !short {
        return container.image.clone();
    }
    // An image that has lost its name is shown by its short id.
    if container.image == container.image_id || container.image.starts_with("sha256:") {
        return units::short_id(&container.image).to_owned();
    }
    match container.image.parse::<proto::image_ref::ImageRef>() {
        Ok(reference) if reference.digest().is_some() => {
            let tag = reference.tag().map(|tag| format!(":{tag}")).unwrap_or_default();
            format!("{}{tag}", reference.familiar_repository())
        }
        _ => container.image.clone(),
    }
}

fn sizes(container: &Summary) -> String {
    let own = units::size(container.size_rw, 3);
    if container.size_root_fs > 0 {
        return format!("{own} (virtual {})", units::size(container.size_root_fs, 3));
    }
    own
}

/// `0.0.0.0:8080->80/tcp, [::]:8080->80/tcp`, neighbours put together to ranges.
fn ports(all: &[Port]) -> String {
    let mut all = all.to_vec();
    all.sort();
    let (mut shown, mut mapped) = (Vec::new(), Vec::new());
    let mut groups: Vec<(String, String, u16, u16)> = Vec::new();
    for port in &all {
        let host = if port.ip.contains(':') { format!("[{}]", port.ip) } else { port.ip.clone() };
        if !host.is_empty() && port.outer != port.inner {
            mapped.push(format!("{host}:{}->{}/{}", port.outer, port.inner, port.protocol));
            continue;
        }
        match groups.iter_mut().find(|(ip, protocol, ..)| *ip == host && *protocol == port.protocol) {
            Some((.., last)) if port.inner == *last + 1 => *last = port.inner,
            Some(group) => {
                shown.push(group_text(group));
                (group.2, group.3) = (port.inner, port.inner);
            }
            None => groups.push((host, port.protocol.clone(), port.inner, port.inner)),
        }
    }
    shown.extend(groups.iter().map(group_text));
    shown.extend(mapped);
    shown.join(", ")
}

fn group_text((host, protocol, first, last): &(String, String, u16, u16)) -> String {
    let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
    if host.is_empty() { format!("{range}/{protocol}") } else { format!("{host}:{range}->{range}/{protocol}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(ip: &str, outer: u16, inner: u16) -> Port {
        Port { ip: ip.into(), outer, inner, protocol: "tcp".into() }
    }

    #[test]
    fn ports_are_grouped() {
        for (all, want) in [
            (vec![], ""),
            (vec![port("", 0, 81), port("", 0, 80), port("", 0, 90)], "80-81/tcp, 90/tcp"),
            (vec![port("::", 8080, 80), port("0.0.0.0", 8080, 80)], "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp"),
            (vec![port("0.0.0.0", 80, 80), port("0.0.0.0", 81, 81)], "0.0.0.0:80-81->80-81/tcp"),
        ] {
            assert_eq!(ports(&all), want);
        }
    }

    #[test]
    fn a_row_of_the_table() {
        let container: Summary = serde_json::from_str(
            r#"{"Id":"0123456789abcdef","Names":["/web","/db/web"],"Image":"nginx","ImageID":"sha256:aa","Command":"sleep 1000000000000000000",
            "Created":100,"Ports":null,"Labels":{"a":"b"},"State":"running","Status":"Up 3 seconds","NetworkSettings":{"Networks":{"bridge":{}}}}"#,
        )
        .unwrap();
        let row = row(&container, true, false, 160);
        for (field, want) in [
            ("ID", "0123456789ab"),
            ("Names", "web"),
            ("Command", "\"sleep 1000000000000…\""),
            ("RunningFor", "About a minute ago"),
            ("Labels", "a=b"),
            ("Networks", "bridge"),
        ] {
            assert_eq!(row.fields.text(&[field]), want, "{field}");
        }
        assert_eq!(names(&container, false), "web,db/web");
    }
}
