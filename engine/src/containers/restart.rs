//! Restart policies: whether a container that ended starts again, and when. Pure.

use crate::{api::RestartPolicy, http::ApiError};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);
/// A run of this length counts as a success: the back-off begins anew.
const STABLE: Duration = Duration::from_secs(10);

/// What a policy knows about the end it judges.
#[derive(Debug, Clone, Copy)]
pub struct Ending {
    /// Exit code.
    pub code: i64,
    /// The user asked for the end.
    pub manual: bool,
    /// Restarts so far.
    pub restarts: u32,
}

/// Whether to start again.
pub fn wants_restart(policy: &RestartPolicy, ending: Ending) -> bool {
    if ending.manual {
        return false;
    }
    match policy.name.as_str() {
        "always" | "unless-stopped" => true,
        "on-failure" => {
            let limit = policy.maximum_retry_count;
            ending.code != 0 && (limit == 0 || i64::from(ending.restarts) < limit)
        }
        _ => false,
    }
}

/// Whether a container that is found ended when the engine starts is to be started.
pub fn wants_start_with_engine(policy: &RestartPolicy, manually_stopped: bool) -> bool {
    match policy.name.as_str() {
        "always" => true,
        "unless-stopped" => !manually_stopped,
        _ => false,
    }
}

/// Time to wait before the next start, given the last wait.
pub fn next_delay(last: Option<Duration>, ran: Duration) -> Duration {
    match last {
        Some(last) if ran < STABLE => (last * 2).min(LONGEST),
        _ => FIRST,
    }
}

/// Refuses policies that don't exist or contradict other settings.
pub fn check(policy: &RestartPolicy, auto_remove: bool) -> Result<(), ApiError> {
    match policy.name.as_str() {
        "" | "no" | "always" | "unless-stopped" | "on-failure" => {}
        other => {
            return Err(ApiError::invalid(format!(
                "invalid restart policy: unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
            )));
        }
    }
    if policy.maximum_retry_count < 0 {
        return Err(ApiError::invalid("invalid restart policy: maximum retry count cannot be negative"));
    }
    if policy.maximum_retry_count > 0 && policy.name != "on-failure" {
        return Err(ApiError::invalid(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'",
        ));
    }
    if auto_remove && !matches!(policy.name.as_str(), "" | "no") {
        return Err(ApiError::invalid("can't create 'AutoRemove' container with restart policy"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, limit: i64) -> RestartPolicy {
        RestartPolicy { name: name.into(), maximum_retry_count: limit }
    }

    #[test]
    fn who_starts_again() {
        let end = |code, manual, restarts| Ending { code, manual, restarts };
        let cases = [
            ("no", 0, end(1, false, 0), false),
            ("", 0, end(1, false, 0), false),
            ("always", 0, end(0, false, 99), true),
            ("always", 0, end(0, true, 0), false),
            ("unless-stopped", 0, end(0, false, 0), true),
            ("on-failure", 0, end(0, false, 0), false),
            ("on-failure", 0, end(3, false, 500), true),
            ("on-failure", 2, end(3, false, 1), true),
            ("on-failure", 2, end(3, false, 2), false),
        ];
        for (name, limit, ending, expected) in cases {
            assert_eq!(wants_restart(&policy(name, limit), ending), expected, "{name}:{limit} {ending:?}");
        }
        assert!(wants_start_with_engine(&policy("always", 0), true));
        assert!(!wants_start_with_engine(&policy("unless-stopped", 0), true));
        assert!(!wants_start_with_engine(&policy("on-failure", 0), false));
    }

    #[test]
    fn back_off_doubles_to_a_minute_and_begins_anew_after_a_good_run() {
        let mut delay = next_delay(None, Duration::ZERO);
        let mut seen = vec![delay.as_millis()];
        for _ in 0..11 {
            delay = next_delay(Some(delay), Duration::from_secs(1));
            seen.push(delay.as_millis());
        }
        assert_eq!(seen, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000]);
        assert_eq!(next_delay(Some(delay), STABLE), FIRST);
    }

    #[test]
    fn refuses_nonsense() {
        assert!(check(&policy("never", 0), false).is_err());
        assert!(check(&policy("always", 3), false).is_err());
        assert!(check(&policy("on-failure", -1), false).is_err());
        assert!(check(&policy("always", 0), true).is_err());
        assert!(check(&policy("on-failure", 3), false).is_ok());
        assert!(check(&policy("no", 0), true).is_ok());
    }
}
