//! `network create`, `connect`, `disconnect`, `ls`, `rm`; `inspect` and `prune` are with their likes.

use super::{App, require};
use crate::args::network::{ConnectArgs, CreateArgs, DisconnectArgs, RmArgs};
use crate::args::system::NetworkLsArgs;
use crate::client::{Call, call::escape};
use crate::exit::{Failure, Outcome};
use crate::options::{envs, subnets};
use crate::output::listing::{self, Layout};
use crate::output::template::Context;
use crate::output::value::Value;
use crate::output::{self, order, time, units};
use serde_json::{Map, json};

const LAYOUT: Layout<'_> = Layout {
    columns: "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}",
    titles: &[
        ("ID", "NETWORK ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("Scope", "SCOPE"),
        ("IPv4", "IPV4"),
        ("IPv6", "IPV6"),
        ("Internal", "INTERNAL"),
        ("Labels", "LABELS"),
        ("CreatedAt", "CREATED AT"),
    ],
    quiet: "{{.ID}}",
};

/// Runs `network ls`.
pub async fn run(app: &App, args: &NetworkLsArgs) -> Outcome {
    let call = Call::get("/networks").filters(&args.filter);
    let reply = app.client().await?.send(call).await?.value().await?;
    let mut networks = reply.items().to_vec();
    networks.sort_by(|a, b| order::natural(a.text(&["Name"]), b.text(&["Name"])));
    let rows: Vec<Context> = networks.iter().map(|network| row(network, !args.no_trunc)).collect();
    let format = args.format.as_deref().or(if args.quiet { None } else { app.config.networks_format() });
    output::print(&listing::render(&LAYOUT, format, args.quiet, &rows)?)
}

/// Labels as lists show them: sorted, with commas.
pub fn pairs(labels: &Value) -> String {
    let mut pairs: Vec<String> =
        labels.fields().iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    pairs.sort();
    pairs.join(",")
}

fn row(network: &Value, short: bool) -> Context {
    let id = network.text(&["Id"]);
    let flag = |name: &str| Value::from(network.get(name).and_then(Value::as_bool).unwrap_or(false).to_string());
    let labels = network.get("Labels").cloned().unwrap_or_default();
    let fields = Value::object([
        ("ID", if short { units::short_id(id) } else { id }.into()),
        ("Name", network.text(&["Name"]).into()),
        ("Driver", network.text(&["Driver"]).into()),
        ("Scope", network.text(&["Scope"]).into()),
        ("IPv4", flag("EnableIPv4")),
        ("IPv6", flag("EnableIPv6")),
        ("Internal", flag("Internal")),
        ("Labels", pairs(&labels).into()),
        ("CreatedAt", time::go_time_of(network.text(&["Created"])).into()),
    ]);
    Context { fields, labels }
}

/// Runs `network create`.
pub async fn create(app: &App, args: &CreateArgs) -> Outcome {
    let ipam = subnets::pools(&args.subnet, &args.ip_range, &args.gateway, &args.aux_address)?;
    let client = app.client().await?;
    require(&client, "--ipv4", !args.ipv4, 47)?;
    let mut body = json!({
        "Name": args.network,
        "CheckDuplicate": true,
        "Driver": args.driver,
        "Scope": args.scope.as_deref().unwrap_or_default(),
        "EnableIPv6": args.ipv6,
        "IPAM": { "Driver": args.ipam_driver, "Options": envs::map(&args.ipam_opt), "Config": ipam },
        "Internal": args.internal,
        "Attachable": args.attachable,
        "Ingress": args.ingress,
        "ConfigOnly": args.config_only,
        "ConfigFrom": args.config_from.as_ref().map(|name| json!({ "Network": name })),
        "Options": envs::map(&args.opt),
        "Labels": envs::labels(&[], &args.label)?,
    });
    if !args.ipv4 {
        body["EnableIPv4"] = json!(false);
    }
    let made = client.send(Call::post("/networks/create").json(&body)).await?.value().await?;
    output::print_line(made.text(&["Id"]))
}

/// Runs `network connect`.
pub async fn connect(app: &App, args: &ConnectArgs) -> Outcome {
    let endpoint = endpoint(args)?;
    let client = app.client().await?;
    require(&client, "--gw-priority", args.gw_priority != 0, 48)?;
    let path = format!("/networks/{}/connect", escape(&args.network, false));
    let body = json!({ "Container": args.container, "EndpointConfig": endpoint });
    client.send(Call::post(path).json(&body)).await?;
    Ok(())
}

fn endpoint(args: &ConnectArgs) -> Outcome<serde_json::Value> {
    let mut options = Map::new();
    for text in &args.driver_opt {
        let Some((key, value)) = text.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return Err(Failure::Refused("invalid key/value pair format in driver options".to_owned()));
        };
        options.insert(key.to_owned(), json!(value));
    }
    let list = |texts: &[String]| if texts.is_empty() { json!(null) } else { json!(texts) };
    let mut ipam = Map::new();
    for (name, address) in [("IPv4Address", &args.ip), ("IPv6Address", &args.ip6)] {
        if let Some(address) = address {
            ipam.insert(name.to_owned(), json!(address));
        }
    }
    if !args.link_local_ip.is_empty() {
        ipam.insert("LinkLocalIPs".to_owned(), json!(args.link_local_ip));
    }
    let mut endpoint = json!({
        "IPAMConfig": ipam,
        "Links": list(&args.link),
        "Aliases": list(&args.alias),
        "DriverOpts": options,
    });
    if args.gw_priority != 0 {
        endpoint["GwPriority"] = json!(args.gw_priority);
    }
    Ok(endpoint)
}

/// Runs `network disconnect`.
pub async fn disconnect(app: &App, args: &DisconnectArgs) -> Outcome {
    let path = format!("/networks/{}/disconnect", escape(&args.network, false));
    let body = json!({ "Container": args.container, "Force": args.force });
    app.client().await?.send(Call::post(path).json(&body)).await?;
    Ok(())
}

/// Runs `network rm`, one after the other.
pub async fn rm(app: &App, args: &RmArgs) -> Outcome {
    let client = app.client().await?;
    let mut errors = Vec::new();
    for name in &args.networks {
        match client.send(Call::delete(format!("/networks/{}", escape(name, false)))).await {
            Ok(_) => output::print_line(name)?,
            Err(error) if args.force && error.is_not_found() => {}
            Err(error) => errors.push(error.to_string()),
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Failure::Several(errors)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let args = ConnectArgs {
            alias: vec!["a".into()],
            driver_opt: vec!["x=y".into()],
            ip: Some("10.0.0.2".into()),
            link: vec!["db:d".into()],
            link_local_ip: vec!["169.254.1.1".into()],
            gw_priority: 7,
            ..ConnectArgs::default()
        };
        let want = json!({"IPAMConfig":{"IPv4Address":"10.0.0.2","LinkLocalIPs":["169.254.1.1"]},"Links":["db:d"],
            "Aliases":["a"],"DriverOpts":{"x":"y"},"GwPriority":7});
        assert_eq!(endpoint(&args).unwrap(), want);
        let bad = ConnectArgs { driver_opt: vec!["x".into()], ..ConnectArgs::default() };
        assert_eq!(endpoint(&bad).unwrap_err().to_string(), "invalid key/value pair format in driver options");
    }
}
