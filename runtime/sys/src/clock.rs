//! The time zone of this machine.

/// Seconds that local time is ahead of UTC at a moment (seconds since 1970); 0 where nobody knows.
pub fn utc_offset(at: i64) -> i64 {
    // SAFETY: a zeroed tm is a valid value: integers and a pointer that may be null.
    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
    let at: libc::time_t = at;
    // SAFETY: both places are valid, and the function keeps neither.
    if unsafe { libc::localtime_r(&raw const at, &raw mut parts) }.is_null() { 0 } else { parts.tm_gmtoff }
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_offset_is_less_than_a_day_and_whole_minutes() {
        let offset = super::utc_offset(1_700_000_000);
        assert!(offset.abs() < 86_400 && offset % 60 == 0, "{offset}");
        super::utc_offset(i64::MAX);
    }
}
