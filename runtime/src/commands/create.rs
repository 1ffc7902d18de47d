//! `create`: builds the container and leaves its process waiting for `start`.

use super::build::{BuildArgs, Built, FLAGS, Starter, build};
use super::{CommandError, Context, write_pid_file};
use crate::args::{Order, Parsed};

pub(super) fn run(context: &Context, arguments: &[String]) -> Result<u8, CommandError> {
    let args = BuildArgs::new("create", &Parsed::parse(FLAGS, Order::Mixed, arguments)?)?;
    let mut built = build(context, &args, Starter::Gate, true)?;
    if let Err(error) = record(&args, &built) {
        return Err(built.undo(context, error));
    }
    context.log.debug(&format!("created, pid {}", built.state.pid));
    built.launched.release();
    built.cgroup.keep();
    built.entry.keep();
    Ok(0)
}

fn record(args: &BuildArgs, built: &Built) -> Result<(), CommandError> {
    built.entry.save(&built.state)?;
    args.pid_file.as_ref().map_or(Ok(()), |path| write_pid_file(path, built.state.pid))
}
