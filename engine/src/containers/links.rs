//! `Links` on the default bridge, the oldest way to find another container: lines in /etc/hosts, and variables that say where
//! it listens and how it was configured. On networks of the user's, links are names there.

use super::{
    Container, ports,
    record::{Joining, Record},
};
use crate::{
    app::App,
    http::{ApiError, ApiResult},
    networks::Protocol,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};
use tracing::warn;

/// `container` or `container:alias`; also `/container:/this/alias`, as inspect shows it.
pub fn parse(text: &str) -> ApiResult<(String, String)> {
    if text.is_empty() {
        return Err(ApiError::invalid("empty string specified for links"));
    }
    let bad = || ApiError::invalid(format!("bad format for links: {text}"));
    let (name, alias) = match text.split(':').collect::<Vec<_>>()[..] {
        [name] => (name, name),
        [name, alias] if name.starts_with('/') => (name, alias.rsplit('/').next().unwrap_or(alias)),
        [name, alias] => (name, alias),
        _ => return Err(bad()),
    };
    let name = name.trim_start_matches('/');
    let alias = alias.trim_start_matches('/');
    // It becomes part of a line of a file and of names of variables.
    let plain = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
    };
    if plain(name) && plain(alias) { Ok((name.to_owned(), alias.to_owned())) } else { Err(bad()) }
}

/// Whether links of a container with this network mode are these links.
fn on_default_network(mode: &str) -> bool {
    matches!(mode, "" | "default" | "bridge" | "host" | "none") || mode.starts_with("container:")
}

/// What a container alone calls others on networks of the user: names in lower case, and what they stand for.
pub fn in_networks(record: &Record, joinings: &[Joining]) -> BTreeMap<String, String> {
    let of_mode = record.host.links.iter().flatten().filter(|_| !on_default_network(&record.host.network_mode));
    let of_networks = joinings.iter().flat_map(|joining| joining.links.iter().flatten());
    let pairs = of_mode.chain(of_networks).filter_map(|link| parse(link).ok());
    pairs.map(|(name, alias)| (alias.to_ascii_lowercase(), name.to_ascii_lowercase())).collect()
}

/// Checks links at create; on the default network the names become ids, which stay when containers are renamed.
pub fn settle(app: &App, mode: &str, links: &mut Option<Vec<String>>) -> ApiResult<()> {
    let conflict = |what: &str| {
        Err(ApiError::invalid(format!(
            "conflicting options: {what} can't be used with links. This would result in undefined behavior"
        )))
    };
    for link in links.iter_mut().flatten() {
        let (name, alias) = parse(link)?;
        if !on_default_network(mode) {
            continue;
        }
        if mode == "host" {
            return conflict("host type networking");
        }
        if mode.starts_with("container:") {
            return conflict("container type network");
        }
        let other = app.containers.find(&name);
        // Not 404: clients take that for a missing image, and pull it.
        let other = other
            .map_err(|error| ApiError::invalid(format!("could not get container for {name}: {}", error.message)))?;
        if other.live().record.host.network_mode == "host" {
            return conflict("host type networking");
        }
        other.live().linked = true;
        *link = format!("{}:{alias}", other.id);
    }
    Ok(())
}

/// Links with the containers that still exist.
fn linked(app: &App, record: &Record) -> Vec<(Arc<Container>, String)> {
    if !on_default_network(&record.host.network_mode) {
        return Vec::new();
    }
    let each = record.host.links.iter().flatten().filter_map(|link| link.split_once(':'));
    each.filter_map(|(id, alias)| Some((app.containers.get(id)?, alias.to_owned()))).collect()
}

/// As inspect shows them: `/other:/this/alias`.
pub fn shown(app: &App, record: &Record) -> Option<Vec<String>> {
    let links = record.host.links.as_ref()?;
    if !on_default_network(&record.host.network_mode) {
        return Some(links.clone());
    }
    let each = linked(app, record);
    let text =
        |(other, alias): (Arc<Container>, String)| format!("/{}:/{}/{alias}", other.live().record.name, record.name);
    Some(each.into_iter().map(text).collect::<Vec<_>>()).filter(|list| !list.is_empty())
}

/// What a linked container says about itself.
#[derive(Debug, PartialEq, Eq)]
struct Other {
    name: String,
    hostname: String,
    address: IpAddr,
    ports: BTreeSet<(u16, Protocol)>,
    env: Vec<String>,
}

fn others(app: &App, record: &Record) -> ApiResult<Vec<(String, Other)>> {
    if !matches!(record.host.network_mode.as_str(), "" | "default" | "bridge") {
        return Ok(Vec::new());
    }
    let mut others = Vec::new();
    for (container, alias) in linked(app, record) {
        let other = container.record();
        if !other.state.phase.is_live() {
            return Err(ApiError::internal(format!(
                "Cannot link to a non running container: /{} AS /{}/{alias}",
                other.name, record.name
            )));
        }
        let address = main_address(&other);
        let Some(address) = address else { continue };
        let mut ports = BTreeSet::new();
        for key in &other.config.exposed_ports.0 {
            if let Ok((first, last, protocol)) = ports::parse_port(key) {
                ports.extend((first..=last).map(|port| (port, protocol)));
            }
        }
        others.push((
            alias,
            Other { name: other.name, hostname: other.config.hostname, address, ports, env: other.config.env },
        ));
    }
    Ok(others)
}

/// The address of a container in its first network: that of IPv4, if it has one.
fn main_address(record: &Record) -> Option<IpAddr> {
    let address = record.state.endpoint.as_ref()?.address.as_ref()?;
    address.all().next().map(|address| address.ip)
}

/// Notes at the start of the engine which containers others are linked to.
pub fn note(containers: &[Arc<Container>]) {
    let targets: Vec<String> = containers
        .iter()
        .flat_map(|container| container.live().record.host.links.clone().unwrap_or_default())
        .filter_map(|link| link.split_once(':').map(|(id, _)| id.to_owned()))
        .collect();
    for container in containers.iter().filter(|container| targets.contains(&container.id)) {
        container.live().linked = true;
    }
}

/// Variables for the first process.
pub fn environment(app: &App, record: &Record) -> ApiResult<Vec<String>> {
    let others = others(app, record)?;
    Ok(others.iter().flat_map(|(alias, other)| variables(&record.name, alias, other)).collect())
}

fn variables(own_name: &str, alias: &str, other: &Other) -> Vec<String> {
    let prefix = alias.to_uppercase().replace('-', "_");
    let ip = other.address;
    let mut env = Vec::new();
    if let Some((port, protocol)) = other.ports.iter().min_by_key(|(port, p)| (*port, p.name() != "tcp")) {
        env.push(format!("{prefix}_PORT={}://{ip}:{port}", protocol.name()));
    }
    for (port, protocol) in &other.ports {
        let protocol = protocol.name();
        let key = format!("{prefix}_PORT_{port}_{}", protocol.to_uppercase());
        env.push(format!("{key}={protocol}://{ip}:{port}"));
        env.push(format!("{key}_ADDR={ip}"));
        env.push(format!("{key}_PORT={port}"));
        env.push(format!("{key}_PROTO={protocol}"));
    }
    env.push(format!("{prefix}_NAME=/{own_name}/{alias}"));
    for word in &other.env {
        match word.split_once('=') {
            Some((key, value)) if key != "HOME" && key != "PATH" => env.push(format!("{prefix}_ENV_{key}={value}")),
            _ => {}
        }
    }
    env
}

/// Entries for /etc/hosts: those asked for, and linked containers as far as they run.
pub fn hosts(app: &App, record: &Record) -> Vec<String> {
    let mut entries = record.host.extra_hosts.clone().unwrap_or_default();
    for (alias, other) in others(app, record).unwrap_or_default() {
        entries.push(format!("{}:{}", names(&alias, &other.hostname, &other.name), other.address));
    }
    entries
}

fn names(alias: &str, hostname: &str, name: &str) -> String {
    if alias == name { format!("{alias} {hostname}") } else { format!("{alias} {hostname} {name}") }
}

/// A container has started, maybe with another address: those that are linked to it and run are told.
pub fn tell_others(app: &App, started: &Record) {
    let Some(address) = main_address(started) else { return };
    if !app.containers.get(&started.id).is_some_and(|container| container.live().linked) {
        return;
    }
    for container in app.containers.all() {
        let record = container.record();
        let linked = record.host.links.iter().flatten().filter_map(|link| link.split_once(':'));
        for (_, alias) in linked.filter(|(id, _)| *id == started.id && record.state.phase.is_live()) {
            let file = app.containers.folder_of(&record.id).join("hosts");
            let names = names(alias, &started.config.hostname, &started.name);
            let told = std::fs::read_to_string(&file).and_then(|text| match with_address(&text, &names, address) {
                // In place: it is bind-mounted.
                Some(text) => std::fs::write(&file, text),
                None => Ok(()),
            });
            if let Err(error) = told {
                warn!(id = crate::ids::short(&record.id), %error, "new address of a linked container is not in its hosts file");
            }
        }
    }
}

/// The text with another address for these names; none if nothing changes.
fn with_address(text: &str, names: &str, address: IpAddr) -> Option<String> {
    let mut changed = false;
    let lines = text.lines().map(|line| match line.split_once('\t') {
        Some((old, rest)) if rest == names && old != address.to_string() => {
            changed = true;
            format!("{address}\t{names}\n")
        }
        _ => format!("{line}\n"),
    });
    let text: String = lines.collect();
    changed.then_some(text)
}

/// `DELETE /containers/{this}/{alias}?link=1`
pub async fn remove(app: &App, this: &str, alias: &str) -> ApiResult<()> {
    let missing = || ApiError::not_found(format!("No such container: {this}/{alias}"));
    let container = app.containers.find(this).map_err(|_| missing())?;
    let _turn = container.turn.lock().await;
    let (record, gone) = {
        let mut live = container.live();
        let links = live.record.host.links.as_mut().ok_or_else(missing)?;
        let at = links.iter().position(|link| link.split_once(':').is_some_and(|(_, name)| name == alias));
        let gone = links.remove(at.ok_or_else(missing)?);
        (live.record.clone(), gone)
    };
    app.containers.store.put(&record).await.map_err(|e| ApiError::unexpected(&e))?;
    let file = app.containers.folder_of(&record.id).join("hosts");
    let other = gone.split(':').next().and_then(|id| app.containers.get(id));
    if let (Some(other), Ok(text)) = (other, std::fs::read_to_string(&file)) {
        let other = other.record();
        let names = names(alias, &other.config.hostname, &other.name);
        let kept: String = text
            .lines()
            .filter(|line| line.split_once('\t').is_none_or(|(_, rest)| rest != names))
            .map(|line| format!("{line}\n"))
            .collect();
        if kept.len() != text.len() {
            std::fs::write(&file, kept).map_err(|e| ApiError::unexpected(&e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for (text, name, alias) in
            [("db", "db", "db"), ("db:data", "db", "data"), ("/db:/web/data", "db", "data"), ("/db", "db", "db")]
        {
            assert_eq!(parse(text).unwrap(), (name.to_owned(), alias.to_owned()), "{text}");
        }
        for bad in ["", ":", "a:", "a:b:c", "a:b c", "a\nb", "a:b\tc", "a:b=c"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn variables_as_dockers() {
        let other = Other {
            name: "db".into(),
            hostname: "h".into(),
            address: [10, 0, 0, 5].into(),
            ports: [(5432, Protocol::Tcp), (53, Protocol::Udp), (53, Protocol::Tcp)].into(),
            env: vec!["A=b=c".into(), "HOME=/x".into(), "PATH=/y".into()],
        };
        let env = variables("web", "my-db", &other);
        assert_eq!(env[0], "MY_DB_PORT=tcp://10.0.0.5:53");
        for word in [
            "MY_DB_PORT_53_UDP=udp://10.0.0.5:53",
            "MY_DB_PORT_5432_TCP=tcp://10.0.0.5:5432",
            "MY_DB_PORT_5432_TCP_ADDR=10.0.0.5",
            "MY_DB_PORT_5432_TCP_PORT=5432",
            "MY_DB_PORT_5432_TCP_PROTO=tcp",
            "MY_DB_NAME=/web/my-db",
            "MY_DB_ENV_A=b=c",
        ] {
            assert!(env.iter().any(|have| have == word), "{word} in {env:?}");
        }
        assert!(!env.iter().any(|word| word.contains("HOME") || word.contains("ENV_PATH")));
    }

    #[test]
    fn a_new_address_replaces_the_old_one_and_nothing_else() {
        let text = "127.0.0.1\tlocalhost\n10.0.0.5\tdb h\n10.0.0.6\tdb h x\n";
        let told = with_address(text, "db h", [10, 0, 0, 9].into()).unwrap();
        assert_eq!(told, "127.0.0.1\tlocalhost\n10.0.0.9\tdb h\n10.0.0.6\tdb h x\n");
        assert_eq!(with_address(&told, "db h", [10, 0, 0, 9].into()), None);
    }
}
