//! `port`

use super::App;
use crate::args::container::PortArgs;
use crate::client::{Call, call::escape};
use crate::exit::{Failure, Outcome};
use crate::output::{self, value::Value};

/// Runs `port`.
pub async fn run(app: &App, args: &PortArgs) -> Outcome {
    let call = Call::get(format!("/containers/{}/json", escape(&args.container, false)));
    let container = app.client().await?.send(call).await?.value().await?;
    let ports = container.at(&["NetworkSettings", "Ports"]).map(Value::fields).unwrap_or_default();
    let mut lines: Vec<(u16, String)> = Vec::new();
    if let Some(wanted) = &args.port {
        let (number, protocol) = wanted.rsplit_once('/').unwrap_or((wanted, "tcp"));
        if let Some(cause) = fault(number) {
            return Err(Failure::Refused(format!(
                "Error: invalid port ({wanted}): strconv.ParseUint: parsing {number:?}: {cause}"
            )));
        }
        let key = format!("{number}/{protocol}");
        let bindings = ports.iter().find(|(port, _)| *port == key).map(|(_, bindings)| bindings.items());
        let Some([_, ..]) = bindings else {
            return Err(Failure::Refused(format!("Error: No public port '{wanted}' published for {}", args.container)));
        };
        lines.extend(bindings.into_iter().flatten().map(|binding| (0, address(binding))));
    } else {
        for (port, bindings) in ports {
            let number = port.split('/').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            lines.extend(bindings.items().iter().map(|binding| (number, format!("{port} -> {}", address(binding)))));
        }
    }
    lines.sort();
    output::print(&lines.into_iter().map(|(_, line)| line + "\n").collect::<String>())
}

fn address(binding: &Value) -> String {
    let (ip, port) = (binding.text(&["HostIp"]), binding.text(&["HostPort"]));
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

/// What docker says of a number that is no port.
fn fault(number: &str) -> Option<&'static str> {
    let all_digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    match number.parse::<u16>() {
        Ok(_) => None,
        Err(_) if all_digits => Some("value out of range"),
        Err(_) => Some("invalid syntax"),
    }
}
