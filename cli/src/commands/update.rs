//! `update`

use super::App;
use crate::args::container::UpdateArgs;
use crate::client::{Call, call::escape};
use crate::exit::{Failure, Outcome};
use crate::options::create::restart_policy;
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
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    for name in &args.containers {
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
    if body.is_empty() && args.kernel_memory.is_none() {
        return Err(Failure::Refused("you must provide one or more flags when using this command".to_owned()));
    }
    Ok(Value::Object(body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::values::ByteSize;

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
