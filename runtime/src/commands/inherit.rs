//! Descriptors that the container's process inherits: stdio, then those of socket activation, then those of `--preserve-fds`.

use std::os::fd::OwnedFd;

use super::{CommandError, Context};

/// Sees to it that exactly those are inherited, and gives what has to be in the process' environment for it.
pub(super) fn descriptors(context: &Context, preserve: u16) -> Result<Vec<String>, CommandError> {
    let (listen, env) = activation(|name| std::env::var(name).ok(), std::process::id());
    let count = i32::from(listen) + i32::from(preserve);
    for number in 3..3 + count {
        // One that the caller did not open may be ours by now.
        let ours = context.log.descriptor() == Some(number);
        if ours || sys::fd::set_cloexec(number, false).is_err() {
            return Err(CommandError::NoDescriptor(number));
        }
    }
    sys::fd::cloexec_from(3 + count).map_err(|errno| CommandError::System("close inherited descriptors", errno))?;
    Ok(env)
}

/// Takes a descriptor for ourselves that is none of those which are passed on.
pub(super) fn take(context: &Context, number: u16) -> Result<OwnedFd, CommandError> {
    let number = i32::from(number);
    // What is passed on, and has to stay where it is, isn't close-on-exec any more.
    let passed_on = !sys::fd::is_cloexec(number).map_err(|_| CommandError::NoDescriptor(number))?;
    if passed_on || context.log.descriptor() == Some(number) {
        return Err(CommandError::NoDescriptor(number));
    }
    sys::fd::take_inherited(number).map_err(|_| CommandError::NoDescriptor(number))
}

/// Socket activation as sd_listen_fds(3) has it: how many descriptors, and what tells the container's process of them, which is
/// the first one of its namespace.
fn activation(variable: impl Fn(&str) -> Option<String>, own: u32) -> (u8, Vec<String>) {
    let count = variable("LISTEN_FDS").and_then(|text| text.parse::<u8>().ok()).unwrap_or(0);
    // Left over from a parent they were meant for.
    let for_another = variable("LISTEN_PID").is_some_and(|pid| pid.parse() != Ok(own));
    if count == 0 || for_another {
        return (0, Vec::new());
    }
    let mut env = vec![format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()];
    env.extend(variable("LISTEN_FDNAMES").map(|names| format!("LISTEN_FDNAMES={names}")));
    (count, env)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activation_is_for_us_or_not_at_all() {
        let run = |fds: &'static str, pid: Option<&'static str>| {
            activation(
                move |name| match name {
                    "LISTEN_FDS" => Some(fds.to_owned()),
                    "LISTEN_PID" => pid.map(str::to_owned),
                    _ => Some("web:admin".to_owned()),
                },
                7,
            )
        };
        let env = ["LISTEN_FDS=2", "LISTEN_PID=1", "LISTEN_FDNAMES=web:admin"].map(str::to_owned).to_vec();
        assert_eq!(run("2", Some("7")), (2, env.clone()));
        assert_eq!(run("2", None), (2, env));
        for (fds, pid) in [("2", Some("8")), ("0", None), ("x", None), ("-1", None), ("300", None)] {
            assert_eq!(run(fds, pid), (0, Vec::new()), "{fds} {pid:?}");
        }
    }
}
