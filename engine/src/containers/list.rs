//! `GET /containers/json`: one line for each container, filtered.

use super::{
    Container,
    health::Status,
    record::{MountKind, Phase, Record, State},
    size,
};
use crate::{
    app::App,
    http::{ApiError, ApiResult, Filters},
    images::names::missing_name,
    networks::Protocol,
    time::Timestamp,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

/// Filters of the list.
pub const FILTERS: [&str; 16] = [
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "label!",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];

/// What to list.
#[derive(Debug)]
pub struct Options {
    /// Also those that do not run.
    pub all: bool,
    /// Only the newest so many, running or not.
    pub limit: usize,
    /// Filters.
    pub filters: Filters,
    /// With sizes.
    pub size: bool,
}

/// Lists: hands over one row after the other, newest first. Whoever turns each into text at once lists thousands for what ten
/// of them cost each.
pub async fn list(app: &Arc<App>, options: &Options, mut take: impl FnMut(Value)) -> ApiResult<()> {
    let filters = &options.filters;
    let before = bound(app, filters, "before")?;
    let since = bound(app, filters, "since")?;
    let ancestors = ancestors(app, filters).await?;
    check_values(filters)?;
    let all =
        options.all || options.limit > 0 || ["status", "exited", "before", "since"].iter().any(|k| filters.has(k));
    let mut count = 0;
    let mut layers = size::Layers::default();
    for container in app.containers.all() {
        let record = container.record();
        if (all || record.state.phase.is_live() || record.state.phase == Phase::Restarting)
            && before.is_none_or(|before| record.created < before)
            && since.is_none_or(|since| record.created > since)
            && ancestors.as_ref().is_none_or(|ids| ids.contains(&record.image_id))
            && passes(&record, filters)
        {
            let mut row = row(app, &record);
            if options.size {
                let sizes = layers.sizes_or_none(app, &record).await.map_err(|e| ApiError::of(e.kind(), &e))?;
                // As docker: what is nothing is left out here, and only here.
                if sizes.written != 0 {
                    row["SizeRw"] = sizes.written.into();
                }
                row["SizeRootFs"] = sizes.root.into();
            }
            take(row);
            count += 1;
            if count == options.limit {
                break;
            }
        }
    }
    Ok(())
}

fn bound(app: &App, filters: &Filters, key: &str) -> ApiResult<Option<Timestamp>> {
    let found = filters.values(key).next().map(|text| app.containers.find(text)).transpose()?;
    Ok(found.map(|container: Arc<Container>| container.live().record.created))
}

async fn ancestors(app: &App, filters: &Filters) -> ApiResult<Option<BTreeSet<String>>> {
    if !filters.has("ancestor") {
        return Ok(None);
    }
    let mut ids = BTreeSet::new();
    for text in filters.values("ancestor") {
        match app.images.resolve(text).await {
            Ok(image) => drop(ids.insert(image.id.to_string())),
            Err(error) if error.kind() == proto::kind::ErrorKind::NotFound => {
                tracing::debug!(image = missing_name(text), "ancestor filter names no image");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some(ids))
}

fn check_values(filters: &Filters) -> ApiResult<()> {
    let states = ["created", "running", "paused", "restarting", "removing", "exited", "dead"];
    for status in filters.values("status") {
        if !states.contains(&status) {
            return Err(ApiError::invalid(format!("invalid filter 'status={status}'")));
        }
    }
    for code in filters.values("exited") {
        if code.parse::<i64>().is_err() {
            return Err(ApiError::invalid(format!("invalid filter 'exited={code}'")));
        }
    }
    for key in ["expose", "publish"] {
        for port in filters.values(key) {
            super::ports::parse_port(port)?;
        }
    }
    filters.boolean("is-task").map(drop)
}

fn passes(record: &Record, filters: &Filters) -> bool {
    let state = &record.state;
    let health = state.health.as_ref().map_or("none", |health| health.status.name());
    let health = filters.any("health", |wanted| wanted == health);
    let published: Vec<String> =
        endpoint_ports(state).map(|p| super::ports::port_key(p.container_port, p.protocol)).collect();
    let within = |list: &[String], wanted: &str| {
        super::ports::parse_port(wanted).is_ok_and(|(first, last, protocol)| {
            (first..=last).any(|port| list.contains(&super::ports::port_key(port, protocol)))
        })
    };
    let exposed: Vec<String> = record.config.exposed_ports.0.iter().cloned().collect();
    health
        && filters.labels(&record.config.labels)
        && filters.any("id", |id| record.id.starts_with(id))
        && filters.any("name", |name| name_matches(&record.name, name))
        && filters.any("status", |status| status == state.phase.name())
        && filters.any("exited", |code| state.phase == Phase::Exited && code.parse() == Ok(state.exit_code))
        && filters.any("network", |network| super::networking::is_called(record, network))
        && filters.any("publish", |port| within(&published, port))
        && filters.any("expose", |port| within(&exposed, port) || within(&published, port))
        && filters.any("volume", |volume| has_volume(record, volume))
        && filters.boolean("is-task").ok().flatten() != Some(true)
}

/// By the name of a volume, or by a path that something is mounted on or comes from.
fn has_volume(record: &Record, wanted: &str) -> bool {
    let fits = |path: &str| !path.is_empty() && path.trim_end_matches('/') == wanted.trim_end_matches('/');
    record
        .mounts
        .iter()
        .any(|mount| mount.volume.as_deref() == Some(wanted) || fits(&mount.destination) || fits(&mount.source))
}

/// Docker takes a regular expression; anchors and plain text are what scripts use.
fn name_matches(name: &str, pattern: &str) -> bool {
    let bare = pattern.strip_prefix('^').map(|rest| rest.strip_prefix('/').unwrap_or(rest));
    match (bare, pattern.strip_suffix('$')) {
        (Some(start), Some(_)) => name == start.strip_suffix('$').unwrap_or(start),
        (Some(start), None) => name.starts_with(start),
        (None, Some(end)) => name.ends_with(end.strip_prefix('/').unwrap_or(end)),
        (None, None) => match pattern.strip_prefix('/') {
            Some(start) => name.starts_with(start),
            None => name.contains(pattern),
        },
    }
}

fn endpoint_ports(state: &State) -> impl Iterator<Item = &crate::networks::PublishedPort> {
    state.endpoint.iter().flat_map(|endpoint| &endpoint.ports)
}

fn row(app: &App, record: &Record) -> Value {
    let state = &record.state;
    let mode = record.host.network_mode.as_str();
    // Arguments with blanks are quoted; the program isn't.
    let quoted = |arg: &String| if arg.contains(' ') { format!("'{arg}'") } else { arg.clone() };
    let words = std::iter::once(record.path.clone()).chain(record.args.iter().map(quoted));
    let command = words.collect::<Vec<_>>().join(" ");
    json!({
        "Id": record.id,
        "Names": [format!("/{}", record.name)],
        "Image": record.config.image,
        "ImageID": record.image_id,
        "Command": command,
        "Created": record.created.seconds(),
        "Ports": ports(record),
        "Labels": record.config.labels,
        "State": state.phase.name(),
        "Status": status(state),
        "HostConfig": {"NetworkMode": mode},
        "NetworkSettings": {"Networks": super::networking::networks(app, record)},
        "Mounts": mounts(record),
    })
}

fn ports(record: &Record) -> Vec<Value> {
    let mut list: Vec<Value> = endpoint_ports(&record.state)
        .map(|port| {
            let mut shown = json!({"PrivatePort": port.container_port, "Type": port.protocol.name()});
            // One of a container whose own address is known outside has none on the host.
            if port.host_port != 0 {
                shown["IP"] = port.host_ip.to_string().into();
                shown["PublicPort"] = port.host_port.into();
            }
            shown
        })
        .collect();
    let published = |port: u16, protocol: Protocol| {
        endpoint_ports(&record.state).any(|p| p.container_port == port && p.protocol == protocol)
    };
    if record.state.phase.is_live() {
        for key in &record.config.exposed_ports.0 {
            let Ok((first, last, protocol)) = super::ports::parse_port(key) else { continue };
            for port in (first..=last).filter(|port| !published(*port, protocol)) {
                list.push(json!({"PrivatePort": port, "Type": protocol.name()}));
            }
        }
    }
    list
}

/// `Mounts` of list and inspect.
pub fn mounts(record: &Record) -> Vec<Value> {
    let visible = record.mounts.iter().filter(|mount| {
        mount.kind != MountKind::Tmpfs
            || mount.options.is_empty()
            || !record.host.tmpfs.contains_key(&mount.destination)
    });
    visible
        .map(|mount| {
            let mut value = json!({
                "Type": mount.kind.name(), "Source": mount.source, "Destination": mount.destination, "Mode": mount.mode,
                "RW": mount.writable, "Propagation": mount.propagation,
            });
            if let Some(volume) = &mount.volume {
                value["Name"] = volume.clone().into();
                value["Driver"] = mount.volume_driver().into();
            }
            value
        })
        .collect()
}

/// `Up 5 minutes`, as `docker ps` prints it.
pub fn status(state: &State) -> String {
    match state.phase {
        Phase::Created => "Created".into(),
        Phase::Running => {
            let up = format!("Up {}", span(state.started_at.elapsed()));
            match state.health.as_ref().map(|health| health.status) {
                None => up,
                Some(Status::Starting) => format!("{up} (health: starting)"),
                Some(status) => format!("{up} ({})", status.name()),
            }
        }
        Phase::Paused => format!("Up {} (Paused)", span(state.started_at.elapsed())),
        Phase::Restarting => format!("Restarting ({}) {} ago", state.exit_code, span(state.finished_at.elapsed())),
        Phase::Exited => format!("Exited ({}) {} ago", state.exit_code, span(state.finished_at.elapsed())),
        Phase::Removing => "Removal In Progress".into(),
    }
}

/// A time span in one rough unit.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        0 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        _ if minutes == 1 => "About a minute".into(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// Containers by id for `GET /networks/{id}`.
pub fn on_network(app: &App, network_id: &str) -> HashMap<String, Value> {
    let all = app.containers.all().into_iter();
    let member = |container: std::sync::Arc<super::Container>| {
        let live = container.live();
        Some((live.record.id.clone(), super::networking::member_of(&live.record, network_id)?))
    };
    all.filter_map(member).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_spans() {
        let cases = [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (150, "2 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (86_400 * 3, "3 days"),
            (86_400 * 21, "3 weeks"),
            (86_400 * 90, "3 months"),
            (86_400 * 800, "2 years"),
        ];
        for (seconds, text) in cases {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn names() {
        for (name, pattern, fits) in [
            ("web1", "web", true),
            ("web1", "^web$", false),
            ("web", "^/web$", true),
            ("myweb", "^web", false),
            ("myweb", "web$", true),
            ("web", "/web", true),
        ] {
            assert_eq!(name_matches(name, pattern), fits, "{name} {pattern}");
        }
    }
}
