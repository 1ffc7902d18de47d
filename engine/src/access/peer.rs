//! Who is on the other end of a connection: what the kernel noted of the process that connected (SO_PEERCRED, SO_PEERGROUPS),
//! with names from /etc/passwd and /etc/group.

use super::{Allow, Rule};
use crate::listen::Caller;
use std::{os::fd::AsFd, path::Path};
use tokio::net::UnixStream;

/// A client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user; none for clients over TCP.
    pub uid: Option<u32>,
    /// Its process; 0 if that is in a place we can't see.
    pub pid: i32,
    /// Name of the user, if it has one; `cert:NAME` for a client with a certificate.
    pub name: Option<String>,
    /// Its groups, the first one its effective one.
    pub groups: Vec<u32>,
    /// Their names, as far as they have any.
    pub group_names: Vec<String>,
}

impl Peer {
    /// The client of a connection.
    pub fn of(stream: &UnixStream) -> std::io::Result<Self> {
        let known = stream.peer_cred()?;
        let mut groups = vec![known.gid()];
        groups.extend(sys::creds::peer_groups(stream.as_fd())?.into_iter().filter(|gid| *gid != known.gid()));
        let (passwd, group) = (read("/etc/passwd"), read("/etc/group"));
        let name_of = |file: &str, id: u32| {
            let mut fields = file.lines().map(|line| line.split(':').collect::<Vec<_>>());
            let line = fields.find(|f| f.get(2).and_then(|n| n.parse().ok()) == Some(id))?;
            line.first().filter(|name| !name.is_empty()).map(|name| (*name).to_owned())
        };
        Ok(Self {
            uid: Some(known.uid()),
            pid: known.pid().unwrap_or(0),
            name: name_of(&passwd, known.uid()),
            group_names: groups.iter().filter_map(|gid| name_of(&group, *gid)).collect(),
            groups,
        })
    }

    /// A client over TCP, known by the name in its certificate. Without a certificate it is nobody, whom no rule names.
    pub fn remote(caller: &Caller) -> Self {
        let name = caller.certificate.as_ref().filter(|name| !name.is_empty()).map(|name| format!("cert:{name}"));
        Self { uid: None, pid: 0, name, groups: Vec::new(), group_names: Vec::new() }
    }

    /// How messages and the trail call it.
    pub fn shown(&self) -> String {
        match (&self.name, self.uid) {
            (Some(name), Some(uid)) => format!("{name} (uid {uid})"),
            (Some(name), None) => name.clone(),
            (None, Some(uid)) => format!("uid {uid}"),
            (None, None) => "without a name".into(),
        }
    }

    /// What is noted as the owner of things of its own.
    pub fn owner(&self) -> String {
        match (self.uid, &self.name) {
            (Some(uid), _) => uid.to_string(),
            (None, Some(name)) => name.clone(),
            // No rule names it, so that it never comes to own anything.
            (None, None) => "nobody".into(),
        }
    }

    /// The first rule that names this user, and its number. Root needs none: it could end the engine and change them.
    pub fn allowed(&self, rules: &[Rule]) -> Option<(usize, Allow)> {
        if self.uid == Some(0) || rules.is_empty() {
            return Some((0, Allow::All));
        }
        let number = |text: &str, id: u32| text.parse() == Ok(id);
        let user = |text: &String| self.uid.is_some_and(|uid| number(text, uid)) || self.name.as_deref() == Some(text);
        let group = |text: &String| self.groups.iter().any(|gid| number(text, *gid)) || self.group_names.contains(text);
        let found = rules.iter().position(|rule| rule.users.iter().any(user) || rule.groups.iter().any(group))?;
        Some((found + 1, rules[found].allow))
    }
}

// A static program has no name service switch: the files are what there is.
fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(path)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, name: Option<&str>, groups: &[(u32, &str)]) -> Peer {
        Peer {
            uid: Some(uid),
            pid: 1,
            name: name.map(str::to_owned),
            groups: groups.iter().map(|(gid, _)| *gid).collect(),
            group_names: groups.iter().map(|(_, name)| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn the_first_rule_that_names_somebody_decides() {
        let rule = |users: &[&str], groups: &[&str], allow| Rule {
            users: users.iter().map(ToString::to_string).collect(),
            groups: groups.iter().map(ToString::to_string).collect(),
            allow,
        };
        let rules = [
            rule(&["alice", "1001"], &[], Allow::Own),
            rule(&[], &["ops", "2000"], Allow::ReadOnly),
            rule(&["bob"], &[], Allow::All),
        ];
        for (who, want) in [
            (peer(0, Some("root"), &[]), Some((0, Allow::All))),
            (peer(5, Some("alice"), &[(9, "ops")]), Some((1, Allow::Own))),
            (peer(1001, None, &[]), Some((1, Allow::Own))),
            (peer(6, Some("bob"), &[(7, "bob"), (9, "ops")]), Some((2, Allow::ReadOnly))),
            (peer(6, Some("bob"), &[]), Some((3, Allow::All))),
            (peer(8, None, &[(2000, "")]), Some((2, Allow::ReadOnly))),
            // The name of a group is no name of a user, and the other way round.
            (peer(10, Some("ops"), &[(1001, "alice")]), None),
        ] {
            assert_eq!(who.allowed(&rules), want, "{who:?}");
        }
        assert_eq!(peer(77, None, &[]).allowed(&[]), Some((0, Allow::All)));
    }

    #[test]
    fn certificates_are_names_of_their_own() {
        let caller = |certificate: Option<&str>| Caller {
            address: "127.0.0.1:1".parse().unwrap(),
            certificate: certificate.map(str::to_owned),
        };
        let rules = [Rule { users: vec!["cert:alice".into(), "bob".into()], groups: vec![], allow: Allow::Own }];
        for (certificate, named) in [(Some("alice"), true), (Some("bob"), false), (Some(""), false), (None, false)] {
            assert_eq!(Peer::remote(&caller(certificate)).allowed(&rules).is_some(), named, "{certificate:?}");
        }
        assert_eq!(Peer::remote(&caller(Some("alice"))).owner(), "cert:alice");
        // A user of this machine can't take the name of a certificate: names of users hold no colon.
        assert_eq!(peer(7, Some("alice"), &[]).allowed(&rules), None);
    }

    #[tokio::test]
    async fn the_kernel_knows_who_connects() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert_eq!(peer.uid, Some(nix::unistd::geteuid().as_raw()));
        assert_eq!(peer.pid, i32::try_from(std::process::id()).unwrap());
        assert_eq!(peer.groups[0], nix::unistd::getegid().as_raw());
    }
}
