//! Who a process runs as: `user[:group]` looked up in the image's own passwd and group files, which are untrusted.

use std::{fs::File, io::Read, os::fd::AsFd};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::stat::{SFlag, fstat},
};
use sys::path::{Within, open_within};

/// Largest passwd or group file that is read (GHSA-72x6-4j93-7w86).
pub const FILE_LIMIT: usize = 10 << 20;
/// The kernel's limit of supplementary groups.
const GROUPS_LIMIT: usize = 65536;

/// The identity of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All further groups; the primary one is among them (CVE-2022-36109).
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// The two files, empty where the image has none.
#[derive(Debug, Clone, Default)]
pub struct Database {
    /// /etc/passwd
    pub passwd: String,
    /// /etc/group
    pub group: String,
}

impl Database {
    /// Reads the files below the open root of an image or a container; absent ones are empty.
    pub fn read(root: impl AsFd) -> Result<Self, ReadError> {
        let root = root.as_fd();
        Ok(Self { passwd: text(root, "etc/passwd")?, group: text(root, "etc/group")? })
    }
}

/// Why one of the files cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The kernel says why.
    #[error("read {path} of the image")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// More than anybody needs.
    #[error("{path} of the image is larger than {FILE_LIMIT} bytes")]
    TooLarge {
        /// The file.
        path: String,
    },
    /// A folder, a FIFO, a device.
    #[error("{path} of the image is not a regular file")]
    NotAFile {
        /// The file.
        path: String,
    },
}

fn text(root: impl AsFd, path: &str) -> Result<String, ReadError> {
    let failed = |cause: std::io::Error| ReadError::Read { path: path.to_owned(), cause };
    // O_NONBLOCK: a FIFO in its place must not hold us (CVE-2024-9676).
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    match open_within(root, path, flags, 0, Within::Root) {
        Ok(file) => read_file(file.into(), path),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(String::new()),
        Err(cause) => Err(failed(cause.into())),
    }
}

/// The text of an open passwd or group file; `path` is for errors.
pub fn read_file(file: File, path: &str) -> Result<String, ReadError> {
    let failed = |cause: std::io::Error| ReadError::Read { path: path.to_owned(), cause };
    let stat = fstat(file.as_fd()).map_err(|e| failed(e.into()))?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(ReadError::NotAFile { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > FILE_LIMIT {
        return Err(ReadError::TooLarge { path: path.to_owned() });
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Why nobody is found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// More than a user and a group.
    #[error("invalid user {0:?}: more than one ':'")]
    Colons(String),
    /// A number that is no id.
    #[error("uids and gids must be in range 0-2147483647: {0:?}")]
    OutOfRange(String),
    /// No such name.
    #[error("unable to find user {}: no matching entries in passwd file", .0.escape_debug())]
    NoUser(String),
    /// No such name.
    #[error("unable to find group {}: no matching entries in group file", .0.escape_debug())]
    NoGroup(String),
}

/// When the groups count of which the group file says that the user is a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memberships {
    /// As Docker does it: unless a group was chosen.
    WithoutGroup,
    /// Always.
    Always,
    /// Never: the image has no say.
    Never,
}

/// Finds the identity for `user[:group]` and further groups.
pub fn find(
    database: &Database,
    wanted: &str,
    memberships: Memberships,
    extra_groups: &[String],
) -> Result<User, UserError> {
    let (user, group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    if group.is_some_and(|g| g.contains(':')) {
        return Err(UserError::Colons(wanted.to_owned()));
    }
    let user = if user.is_empty() { "0" } else { user };
    // A name that looks like a number is a number: a passwd line named "1000" must not choose the id (CVE-2016-3697).
    let number = number(user).map_err(|()| UserError::OutOfRange(user.to_owned()))?;
    let entry = database.passwd.lines().filter_map(passwd_entry).find(|entry| match number {
        Some(uid) => entry.uid == uid,
        None => entry.name == user,
    });
    let (uid, mut gid, home, name) = match (number, &entry) {
        (_, Some(entry)) => (entry.uid, entry.gid, entry.home, Some(entry.name)),
        (Some(uid), None) => (uid, 0, "/", None),
        (None, None) => return Err(UserError::NoUser(user.to_owned())),
    };
    let mut groups = Vec::new();
    let group = group.filter(|g| !g.is_empty());
    if let Some(group) = group {
        gid = find_group(database, group)?;
    }
    let counts = match memberships {
        Memberships::WithoutGroup => group.is_none(),
        Memberships::Always => true,
        Memberships::Never => false,
    };
    if let Some(name) = name.filter(|_| counts) {
        let entries = database.group.lines().filter_map(group_entry);
        groups.extend(entries.filter(|g| g.members.split(',').any(|m| m == name)).map(|g| g.gid));
    }
    for extra in extra_groups {
        groups.push(find_group(database, extra)?);
    }
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    groups.truncate(GROUPS_LIMIT);
    let home = if home.is_empty() { "/" } else { home };
    // The home directory becomes an environment variable; control characters have no business there.
    let home = if home.chars().any(char::is_control) { "/" } else { home };
    let home = if uid == 0 && entry.is_none() { "/root" } else { home };
    Ok(User { uid, gid, groups, home: home.to_owned() })
}

fn find_group(database: &Database, wanted: &str) -> Result<u32, UserError> {
    let out_of_range = |()| UserError::OutOfRange(wanted.to_owned());
    if let Some(gid) = number(wanted).map_err(out_of_range)? {
        return Ok(gid);
    }
    let entry = database.group.lines().filter_map(group_entry).find(|entry| entry.name == wanted);
    entry.map(|entry| entry.gid).ok_or_else(|| UserError::NoGroup(wanted.to_owned()))
}

/// `Ok(None)`: a name. `Err`: a number that is no id (CVE-2024-40635: it must never wrap around to 0).
fn number(text: &str) -> Result<Option<u32>, ()> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) if id <= i32::MAX as u32 && digits == text => Ok(Some(id)),
        _ => Err(()),
    }
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd_entry(line: &str) -> Option<PasswdEntry<'_>> {
    let mut fields = line.trim_end().split(':');
    let name = fields.next().filter(|n| !n.is_empty() && !n.starts_with('#'))?;
    let _password = fields.next()?;
    let uid = number(fields.next()?).ok()??;
    let gid = number(fields.next()?).ok()??;
    let _comment = fields.next();
    Some(PasswdEntry { name, uid, gid, home: fields.next().unwrap_or("/") })
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn group_entry(line: &str) -> Option<GroupEntry<'_>> {
    let mut fields = line.trim_end().split(':');
    let name = fields.next().filter(|n| !n.is_empty() && !n.starts_with('#'))?;
    let _password = fields.next()?;
    let gid = number(fields.next()?).ok()??;
    Some(GroupEntry { name, gid, members: fields.next().unwrap_or("") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn database() -> Database {
        Database {
            passwd: "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33::/var/www:/bin/false\n1000:x:0:0::/evil:/bin/sh\n\
                     big:x:4294967296:0::/:/x\nbob:x:1001:1001::/home/bob:/bin/sh"
                .into(),
            group: "root:x:0:\nwww:x:33:\nstaff:x:50:www,bob\naudio:x:29:www\nbad:x:-1:www\nbob:x:1001:".into(),
        }
    }

    #[test]
    fn names_numbers_and_groups() {
        let cases: [(&str, u32, u32, &[u32], &str); 9] = [
            ("", 0, 0, &[0], "/root"),
            ("root", 0, 0, &[0], "/root"),
            ("www", 33, 33, &[29, 33, 50], "/var/www"),
            ("33", 33, 33, &[29, 33, 50], "/var/www"),
            ("www:staff", 33, 50, &[50], "/var/www"),
            ("www:7", 33, 7, &[7], "/var/www"),
            (":7", 0, 7, &[7], "/root"),
            ("1000", 1000, 0, &[0], "/"),
            ("1001:", 1001, 1001, &[50, 1001], "/home/bob"),
        ];
        for (wanted, uid, gid, groups, home) in cases {
            let user = find(&database(), wanted, Memberships::WithoutGroup, &[]).unwrap();
            assert_eq!(
                (user.uid, user.gid, user.groups.as_slice(), user.home.as_str()),
                (uid, gid, groups, home),
                "{wanted}"
            );
        }
        let of = |wanted: &str, memberships, extra: &[&str]| {
            let extra: Vec<String> = extra.iter().map(|&group| group.to_owned()).collect();
            find(&database(), wanted, memberships, &extra).unwrap().groups
        };
        assert_eq!(of("www:33", Memberships::WithoutGroup, &["staff", "9"]), [9, 33, 50]);
        assert_eq!(of("www:7", Memberships::Always, &["9"]), [7, 9, 29, 50]);
        assert_eq!(of("33", Memberships::Never, &["9"]), [9, 33]);
        assert_eq!(find(&Database::default(), "", Memberships::Always, &[]).unwrap().home, "/root");
    }

    #[test]
    fn never_root_by_accident() {
        for wanted in [
            "4294967295",
            "2147483648",
            "99999999999",
            "-1",
            "+0",
            "nobody",
            "big",
            "1:2:3",
            "www:nogroup",
            "0x10",
            " 1",
        ] {
            assert!(find(&database(), wanted, Memberships::Always, &[]).is_err(), "{wanted}");
        }
    }

    proptest! {
        #[test]
        fn any_files_and_any_user(passwd in ".{0,200}", group in ".{0,200}", wanted in ".{0,20}") {
            let _ = find(&Database { passwd, group }, &wanted, Memberships::Always, &[]);
        }
    }
}
