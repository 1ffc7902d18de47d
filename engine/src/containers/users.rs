//! Who a process runs as: `user[:group]` looked up in the image's own passwd and group files, which are untrusted.
//! Pure; how the files are read is `layers`' business.

use crate::http::ApiError;

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

/// Finds the identity for `Config.User` and `HostConfig.GroupAdd`.
pub fn find(database: &Database, wanted: &str, extra_groups: &[String]) -> Result<User, ApiError> {
    let (user, group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    if group.is_some_and(|g| g.contains(':')) {
        return Err(ApiError::invalid(format!("invalid user {wanted:?}: more than one ':'")));
    }
    let user = if user.is_empty() { "0" } else { user };
    // A name that looks like a number is a number: a passwd line named "1000" must not choose the id (CVE-2016-3697).
    let number = number(user)
        .map_err(|()| ApiError::invalid(format!("uids and gids must be in range 0-2147483647: {user:?}")))?;
    let entry = database.passwd.lines().filter_map(passwd_entry).find(|entry| match number {
        Some(uid) => entry.uid == uid,
        None => entry.name == user,
    });
    let (uid, mut gid, home, name) = match (number, &entry) {
        (_, Some(entry)) => (entry.uid, entry.gid, entry.home, Some(entry.name)),
        (Some(uid), None) => (uid, 0, "/", None),
        (None, None) => {
            return Err(ApiError::invalid(format!("unable to find user {user}: no matching entries in passwd file")));
        }
    };
    let mut groups = Vec::new();
    match group.filter(|g| !g.is_empty()) {
        Some(group) => gid = find_group(database, group)?,
        None => {
            // Memberships count only when no group was chosen, as in Docker.
            if let Some(name) = name {
                let entries = database.group.lines().filter_map(group_entry);
                groups.extend(entries.filter(|g| g.members.split(',').any(|m| m == name)).map(|g| g.gid));
            }
        }
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

fn find_group(database: &Database, wanted: &str) -> Result<u32, ApiError> {
    let out_of_range = |()| ApiError::invalid(format!("uids and gids must be in range 0-2147483647: {wanted:?}"));
    if let Some(gid) = number(wanted).map_err(out_of_range)? {
        return Ok(gid);
    }
    let entry = database.group.lines().filter_map(group_entry).find(|entry| entry.name == wanted);
    entry
        .map(|entry| entry.gid)
        .ok_or_else(|| ApiError::invalid(format!("unable to find group {wanted}: no matching entries in group file")))
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
            let user = find(&database(), wanted, &[]).unwrap();
            assert_eq!(
                (user.uid, user.gid, user.groups.as_slice(), user.home.as_str()),
                (uid, gid, groups, home),
                "{wanted}"
            );
        }
        assert_eq!(find(&database(), "www:33", &["staff".into(), "9".into()]).unwrap().groups, [9, 33, 50]);
        assert_eq!(find(&Database::default(), "", &[]).unwrap().home, "/root");
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
            assert!(find(&database(), wanted, &[]).is_err(), "{wanted}");
        }
    }

    proptest! {
        #[test]
        fn any_files_and_any_user(passwd in ".{0,200}", group in ".{0,200}", wanted in ".{0,20}") {
            let _ = find(&Database { passwd, group }, &wanted, &[]);
        }
    }
}
