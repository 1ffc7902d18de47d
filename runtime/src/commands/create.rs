//! `create`: builds the container and leaves its process waiting for `start`.

use super::build::{BuildArgs, FLAGS, Starter, build};
use super::{CommandError, Context, write_pid_file};
use crate::args::{Order, Parsed};

pub(super) fn run(context: &Context, arguments: &[String]) -> Result<u8, CommandError> {
    let args = BuildArgs::new("create", &Parsed::parse(FLAGS, Order::Mixed, arguments)?)?;
    let mut built = build(context, &args, Starter::Gate, true)?;
    built.entry.save(&built.state)?;
    if let Some(path) = &args.pid_file {
        write_pid_file(path, built.state.pid)?;
    }
    built.launched.release();
    built.cgroup.keep();
    built.entry.keep();
    Ok(0)
}
