//! Who files belong to: by number, or by name in the passwd and group files of a tree.

use super::FileError;
use ::spec::users::Database;
use proto::pb::{self, file_action::Action, user_opt::User};
use std::os::fd::OwnedFd;

/// Roots of the trees whose files say who is who.
#[derive(Debug, Clone, Copy, Default)]
pub struct Databases<'a> {
    /// With the passwd file.
    pub users: Option<&'a OwnedFd>,
    /// With the group file.
    pub groups: Option<&'a OwnedFd>,
}

fn of(action: &pb::FileAction) -> Option<&pb::ChownOpt> {
    match action.action.as_ref()? {
        Action::Copy(copy) => copy.owner.as_ref(),
        Action::Mkfile(file) => file.owner.as_ref(),
        Action::Mkdir(folder) => folder.owner.as_ref(),
        Action::Symlink(link) => link.owner.as_ref(),
        Action::Rm(_) => None,
    }
}

/// The inputs with the passwd and the group file.
pub fn inputs(action: &pb::FileAction) -> [Option<i64>; 2] {
    let input = |user: Option<&pb::UserOpt>| match user?.user.as_ref()? {
        User::ByName(named) => Some(named.input),
        User::ById(_) => None,
    };
    let owner = of(action);
    [input(owner.and_then(|owner| owner.user.as_ref())), input(owner.and_then(|owner| owner.group.as_ref()))]
}

/// Numbers of the owner. A name that the files don't have is 0, as BuildKit has it; a user's group is the one of its entry, and
/// of a number the same number.
pub fn find(owner: Option<&pb::ChownOpt>, databases: Databases<'_>) -> Result<Option<(u32, u32)>, FileError> {
    let Some(owner) = owner else { return Ok(None) };
    let read = |root: Option<&OwnedFd>, what: &str| match root {
        Some(root) => Ok(Database::read(root)?),
        None => Err(FileError::Invalid(format!("invalid missing {what} mount"))),
    };
    let number = |text: &str| text.parse::<u32>().ok().filter(|id| i32::try_from(*id).is_ok());
    let fields = |text: &str, name: &str, at: usize| -> Option<(u32, Option<u32>)> {
        let entry = text.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|entry| entry[0] == name)?;
        Some((number(entry.get(at)?.trim())?, entry.get(at + 1).and_then(|text| number(text.trim()))))
    };
    let (mut uid, mut gid) = (0, 0);
    match owner.user.as_ref().and_then(|user| user.user.as_ref()) {
        Some(User::ByName(named)) => {
            if let Some((user, group)) = fields(&read(databases.users, "user")?.passwd, &named.name, 2) {
                (uid, gid) = (user, group.unwrap_or(0));
            }
        }
        Some(User::ById(id)) => (uid, gid) = (*id, *id),
        None => {}
    }
    match owner.group.as_ref().and_then(|group| group.user.as_ref()) {
        Some(User::ByName(named)) => {
            if let Some((group, _)) = fields(&read(databases.groups, "group")?.group, &named.name, 2) {
                gid = group;
            }
        }
        Some(User::ById(id)) => gid = *id,
        None => {}
    }
    if uid == u32::MAX || gid == u32::MAX {
        return Err(FileError::Invalid("uids and gids must be in range 0-4294967294".into()));
    }
    Ok(Some((uid, gid)))
}
