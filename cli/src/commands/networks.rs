//! `network ls`

use super::App;
use crate::args::system::NetworkLsArgs;
use crate::client::Call;
use crate::exit::Outcome;
use crate::output::listing::{self, Layout};
use crate::output::template::Context;
use crate::output::value::Value;
use crate::output::{self, time, units};

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
    networks.sort_by(|a, b| a.text(&["Name"]).cmp(b.text(&["Name"])));
    let rows: Vec<Context> = networks.iter().map(|network| row(network, !args.no_trunc)).collect();
    let format = args.format.as_deref().or(if args.quiet { None } else { app.config.networks_format() });
    output::print(&listing::render(&LAYOUT, format, args.quiet, &rows)?)
}

fn row(network: &Value, short: bool) -> Context {
    let id = network.text(&["Id"]);
    let flag = |name: &str| Value::from(network.get(name).and_then(Value::as_bool).unwrap_or(false).to_string());
    let labels = network.get("Labels").cloned().unwrap_or_default();
    let pairs: Vec<String> =
        labels.fields().iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    let fields = Value::object([
        ("ID", if short { units::short_id(id) } else { id }.into()),
        ("Name", network.text(&["Name"]).into()),
        ("Driver", network.text(&["Driver"]).into()),
        ("Scope", network.text(&["Scope"]).into()),
        ("IPv4", flag("EnableIPv4")),
        ("IPv6", flag("EnableIPv6")),
        ("Internal", flag("Internal")),
        ("Labels", pairs.join(",").into()),
        ("CreatedAt", time::go_time_of(network.text(&["Created"])).into()),
    ]);
    Context { fields, labels }
}
