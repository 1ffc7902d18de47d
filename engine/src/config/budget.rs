//! How much disk images, build cache and logs may take: one policy, on unless it is turned off.
//!
//! Images: when they take more than the budget, those without a name and without a container go, oldest first, until it is
//! kept; images with a name only if `image-budget-named` says so. Logs: each container's are rotated within its own limits
//! (docker's `max-size` and `max-file`, which have defaults here); beyond the budget for all of them together the oldest rotated
//! files go. Build cache has its own limits, docker's (key `builder`).

use std::path::Path;

/// The limits in bytes; `None` where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// For images.
    pub images: Option<u64>,
    /// Whether named images may go, too.
    pub named: bool,
    /// For logs of containers.
    pub logs: Option<u64>,
}

/// Images always have this much.
const LEAST_IMAGES: u64 = 10 << 30;
const LEAST_LOGS: u64 = 1 << 30;

impl Budget {
    /// From the configuration; without it a tenth of the disk below `root` for images (10 GiB at least) and a fiftieth for logs
    /// (1 GiB at least).
    pub fn read(images: Option<&str>, named: bool, logs: Option<&str>, root: &Path) -> Result<Self, String> {
        let limit = |key: &str, text: Option<&str>, part: u64, least: u64| match text {
            Some("off") => Ok(None),
            Some(text) => match parse_size(text).filter(|size| *size > 0) {
                Some(size) => Ok(Some(size)),
                None => Err(format!("{key}: {text:?} is neither a size nor \"off\"")),
            },
            None => Ok(disk(root).map(|size| (size / part).max(least))),
        };
        Ok(Self {
            images: limit("image-budget", images, 10, LEAST_IMAGES)?,
            named,
            logs: limit("log-budget", logs, 50, LEAST_LOGS)?,
        })
    }
}

/// Size of the disk that `root` is on, or will be.
pub fn disk(root: &Path) -> Option<u64> {
    let there = root.ancestors().find(|path| path.exists())?;
    let stat = nix::sys::statvfs::statvfs(there).ok()?;
    Some(stat.blocks() * stat.fragment_size())
}

/// Docker's sizes: `64M`, `1.5g`, `100KB`, `10GiB`, plain bytes; units are powers of 1024.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().ok()?;
    let unit = unit.trim();
    let shift = match unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(unit) {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    let bytes = number * f64::from(1_u32 << (shift / 2)) * f64::from(1_u32 << (shift / 2));
    (bytes.is_finite() && bytes < 9e18).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("1024", Some(1024)),
            ("64M", Some(64 << 20)),
            ("1.5g", Some(3 << 29)),
            ("100KB", Some(100 << 10)),
            ("10GiB", Some(10 << 30)),
            ("2 TB", Some(2 << 40)),
            ("0", Some(0)),
            ("", None),
            ("x", None),
            ("1x", None),
            ("1e9", None),
            ("-1", None),
            ("99999999999999p", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }

    #[test]
    fn limits() {
        let root = Path::new("/");
        let by_default = Budget::read(None, false, None, root).unwrap();
        assert!(by_default.images >= Some(LEAST_IMAGES) && by_default.logs >= Some(LEAST_LOGS));
        let set = Budget::read(Some("5G"), true, Some("off"), root).unwrap();
        assert_eq!(set, Budget { images: Some(5 << 30), named: true, logs: None });
        assert!(Budget::read(Some("much"), false, None, root).unwrap_err().contains("image-budget"));
        assert!(Budget::read(Some("0"), false, None, root).is_err());
    }
}
