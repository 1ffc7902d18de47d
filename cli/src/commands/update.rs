//! `update`

use super::App;
use crate::args::container::UpdateArgs;
use crate::client::{Call, call::escape};
use crate::exit::{Failure, Outcome};
use crate::options::create::restart_policy;
use crate::options::ports::Ports;
use crate::output;
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Updated {
    #[serde(default)]
    warnings: Option<Vec<String>>,
}

/// Runs `update`, one container after the other.
pub async fn run(app: &App, args: &UpdateArgs) -> Outcome {
    let body = body(args)?;
    if args.kernel_memory.is_some() {
        output::note("WARNING: --kernel-memory has no effect: kernels since 5.4 have no such limit");
    }
    let client = app.client().await?;
    let ports = PortChanges::read(args)?;
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    for name in &args.containers {
        let mut body = body.clone();
        if let Some(changes) = &ports {
            let shown = client.send(Call::get(format!("/containers/{}/json", escape(name, false)))).await;
            let shown = match shown {
                Ok(reply) => reply.json::<Value>().await,
                Err(error) => Err(error),
            };
            let bindings = shown.map_err(|error| error.to_string());
            match bindings.and_then(|shown| changes.applied(&shown).map_err(|error| error.to_string())) {
                Ok(bindings) => body["PortBindings"] = bindings,
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            }
        }
        let call = Call::post(format!("/containers/{}/update", escape(name, false))).json(&body);
        let updated = match client.send(call).await {
            Ok(reply) => reply.json::<Updated>().await,
            Err(error) => Err(error),
        };
        match updated {
            Ok(updated) => {
                output::print_line(name)?;
                warnings.extend(updated.warnings.unwrap_or_default());
            }
            Err(error) => errors.push(error.to_string()),
        }
    }
    if !warnings.is_empty() {
        output::print_line(&warnings.join("\n"))?;
    }
    if errors.is_empty() { Ok(()) } else { Err(Failure::Several(errors)) }
}

/// What is to become of the published ports. Not docker's: its update knows no ports.
struct PortChanges {
    added: Map<String, Value>,
    removed: Vec<String>,
}

impl PortChanges {
    fn read(args: &UpdateArgs) -> Outcome<Option<Self>> {
        if args.publish_add.is_empty() && args.publish_rm.is_empty() {
            return Ok(None);
        }
        let mut ports = Ports::default();
        for text in &args.publish_add {
            ports.publish(text).map_err(|error| Failure::Refused(error.to_string()))?;
        }
        let removed = args.publish_rm.iter().map(|text| match text.split_once('/') {
            Some(_) => text.clone(),
            None => format!("{text}/tcp"),
        });
        Ok(Some(Self { added: ports.bindings, removed: removed.collect() }))
    }

    /// The bindings of a container as inspect shows it, with the changes.
    fn applied(&self, shown: &Value) -> Outcome<Value> {
        let mut bindings = shown["HostConfig"]["PortBindings"].as_object().cloned().unwrap_or_default();
        for port in &self.removed {
            if bindings.remove(port).is_none() {
                return Err(Failure::Refused(format!("container {} doesn't publish {port}", shown["Name"])));
            }
        }
        for (port, added) in &self.added {
            let all = bindings.entry(port.clone()).or_insert_with(|| json!([]));
            match (all.as_array_mut(), added.as_array()) {
                (Some(all), Some(added)) => all.extend(added.iter().cloned()),
                _ => *all = added.clone(),
            }
        }
        Ok(Value::Object(bindings))
    }
}

/// What is to change, and nothing else.
fn body(args: &UpdateArgs) -> Outcome<Value> {
    let size = |value: Option<crate::args::values::ByteSize>| value.map(|size| json!(size.0));
    let number = |value: Option<i64>| value.map(|value| json!(value));
    let text = |value: &Option<String>| value.as_ref().map(|value| json!(value));
    let all = [
        ("BlkioWeight", args.blkio_weight.map(|weight| json!(weight))),
        ("CpuPeriod", number(args.cpu_period)),
        ("CpuQuota", number(args.cpu_quota)),
        ("CpuRealtimePeriod", number(args.cpu_rt_period)),
        ("CpuRealtimeRuntime", number(args.cpu_rt_runtime)),
        ("CpuShares", number(args.cpu_shares)),
        ("NanoCpus", number(args.cpus)),
        ("CpusetCpus", text(&args.cpuset_cpus)),
        ("CpusetMems", text(&args.cpuset_mems)),
        ("Memory", size(args.memory)),
        ("MemoryReservation", size(args.memory_reservation)),
        ("MemorySwap", size(args.memory_swap)),
        ("PidsLimit", number(args.pids_limit)),
        ("RestartPolicy", args.restart.as_deref().map(restart_policy).transpose()?),
    ];
    let body: Map<String, Value> =
        all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    let ports = !args.publish_add.is_empty() || !args.publish_rm.is_empty();
    if body.is_empty() && args.kernel_memory.is_none() && !ports {
        return Err(Failure::Refused("you must provide one or more flags when using this command".to_owned()));
    }
    Ok(Value::Object(body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::values::ByteSize;

    #[test]
    fn ports_come_and_go() {
        let args = UpdateArgs {
            publish_add: vec!["8081:81".into(), "127.0.0.1:53:53/udp".into()],
            publish_rm: vec!["80".into()],
            ..UpdateArgs::default()
        };
        assert_eq!(body(&args).unwrap(), json!({}));
        let changes = PortChanges::read(&args).unwrap().unwrap();
        let shown = json!({"Name": "/web", "HostConfig": {"PortBindings": {
            "80/tcp": [{"HostIp": "", "HostPort": "8080"}], "81/tcp": [{"HostIp": "", "HostPort": "1"}]}}});
        let want = json!({
            "81/tcp": [{"HostIp": "", "HostPort": "1"}, {"HostIp": "", "HostPort": "8081"}],
            "53/udp": [{"HostIp": "127.0.0.1", "HostPort": "53"}],
        });
        assert_eq!(changes.applied(&shown).unwrap(), want);
        let error = changes.applied(&json!({"Name": "/web", "HostConfig": {}})).unwrap_err();
        assert!(error.to_string().contains("doesn't publish 80/tcp"), "{error}");
        let bad = UpdateArgs { publish_add: vec!["x:y:z".into()], ..UpdateArgs::default() };
        assert!(PortChanges::read(&bad).is_err());
    }

    #[test]
    fn only_what_is_given_is_sent() {
        let args = UpdateArgs {
            cpus: Some(1_500_000_000),
            memory: Some(ByteSize(64 << 20)),
            memory_swap: Some(ByteSize(-1)),
            pids_limit: Some(-1),
            restart: Some("on-failure:3".into()),
            ..UpdateArgs::default()
        };
        let want = json!({"NanoCpus":1_500_000_000,"Memory":67_108_864,"MemorySwap":-1,"PidsLimit":-1,
            "RestartPolicy":{"Name":"on-failure","MaximumRetryCount":3}});
        assert_eq!(body(&args).unwrap(), want);
        assert!(
            body(&UpdateArgs::default()).unwrap_err().to_string().starts_with("you must provide one or more flags")
        );
    }
}
