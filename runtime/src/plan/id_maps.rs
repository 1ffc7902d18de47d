//! Id maps of mounts: whose ids are shown as whose.

use sys::mount::Reach;

use super::PlanError;
use super::libc_flag::NEWUSER;
use super::namespaces::NamespacePlan;
use crate::spec::{IdMapping, Mount};

/// Which map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ids {
    /// One of its own.
    Map { uids: Vec<IdMapping>, gids: Vec<IdMapping> },
    /// That of the user namespace that the container joins.
    Joined,
}

/// What is mapped how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdMap {
    pub(crate) reach: Reach,
    pub(crate) ids: Ids,
}

/// Works out the map of a mount. `word` is the option `idmap` or `ridmap` with its value, if it is there.
pub(super) fn plan(
    index: usize,
    mount: &Mount,
    word: Option<(Reach, Option<&str>)>,
    namespaces: &NamespacePlan,
) -> Result<Option<IdMap>, PlanError> {
    let field = |name: &str| format!("mounts[{index}].{name}");
    let (uids, gids) = (&mount.uid_mappings, &mount.gid_mappings);
    for (name, map) in [("uidMappings", uids), ("gidMappings", gids)] {
        check(&field(name), map)?;
    }
    let reach = word.map_or(Reach::One, |(reach, _)| reach);
    let found = |ids| Ok(Some(IdMap { reach, ids }));
    match (uids.is_empty(), gids.is_empty(), word) {
        (true, true, None) => Ok(None),
        (true, true, Some((_, Some(text)))) => {
            let (uids, gids) = parse(&field("options"), text, namespaces)?;
            found(Ids::Map { uids, gids })
        }
        (true, true, Some((_, None))) => {
            if namespaces.new & NEWUSER != 0 {
                let (uids, gids) = (namespaces.uid_mappings.clone(), namespaces.gid_mappings.clone());
                return found(Ids::Map { uids, gids });
            }
            if namespaces.is_private(NEWUSER) {
                return found(Ids::Joined);
            }
            Err(PlanError::invalid(
                field("options"),
                "idmap",
                "needs uidMappings and gidMappings of the mount, or a user namespace of the container",
            ))
        }
        (_, _, Some((_, Some(text)))) => {
            Err(PlanError::invalid(field("options"), text, "contradicts uidMappings and gidMappings"))
        }
        (true, false, _) => Err(PlanError::invalid(field("uidMappings"), "", "is empty, but gidMappings is not")),
        (false, true, _) => Err(PlanError::invalid(field("gidMappings"), "", "is empty, but uidMappings is not")),
        (false, false, _) => found(Ids::Map { uids: uids.clone(), gids: gids.clone() }),
    }
}

/// Lines of an id map that the kernel takes (user_namespaces(7)).
const MAX_MAPPINGS: usize = 340;

/// Every range has to be one.
pub(super) fn check(field: &str, map: &[IdMapping]) -> Result<(), PlanError> {
    if map.len() > MAX_MAPPINGS {
        let why = "are more than the kernel takes, 340";
        return Err(PlanError::invalid(field, format!("{} mappings", map.len()), why));
    }
    for mapping in map {
        let fits = |start: u32| start.checked_add(mapping.size).is_some();
        if mapping.size == 0 || !fits(mapping.container_id) || !fits(mapping.host_id) {
            return Err(PlanError::invalid(field, format!("{mapping:?}"), "is no range of ids"));
        }
    }
    Ok(())
}

type Maps = (Vec<IdMapping>, Vec<IdMapping>);

/// crun's `uids=0-1000-10#10-2000-5;gids=@0-0-10`: from, to, count; after `@` the second number is one inside the container.
fn parse(field: &str, text: &str, namespaces: &NamespacePlan) -> Result<Maps, PlanError> {
    let bad = |why| PlanError::invalid(field, text, why);
    let (mut uids, mut gids) = (Vec::new(), Vec::new());
    for part in text.split(';').filter(|part| !part.is_empty()) {
        let (name, ranges) = part.split_once('=').ok_or_else(|| bad("is not uids=.. or gids=.."))?;
        let (map, base) = match name {
            "uids" => (&mut uids, &namespaces.uid_mappings),
            "gids" => (&mut gids, &namespaces.gid_mappings),
            _ => return Err(bad("is not uids=.. or gids=..")),
        };
        for range in ranges.split('#') {
            let (relative, range) = range.strip_prefix('@').map_or((false, range), |range| (true, range));
            let numbers: Option<Vec<u32>> = range.split('-').map(|number| number.parse().ok()).collect();
            let Some(&[container_id, mut host_id, size]) = numbers.as_deref() else {
                return Err(bad("is not made of FROM-TO-COUNT"));
            };
            if relative {
                host_id =
                    outside(base, host_id).ok_or_else(|| bad("is relative to an id that the container has not"))?;
            }
            map.push(IdMapping { container_id, host_id, size });
        }
    }
    if uids.is_empty() || gids.is_empty() {
        return Err(bad("lacks uids=.. or gids=.."));
    }
    check(field, &uids)?;
    check(field, &gids)?;
    Ok((uids, gids))
}

/// The id that the host has for one of the container.
pub(super) fn outside(map: &[IdMapping], id: u32) -> Option<u32> {
    map.iter().find_map(|mapping| {
        let offset = id.checked_sub(mapping.container_id).filter(|offset| *offset < mapping.size)?;
        mapping.host_id.checked_add(offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IdMapping = IdMapping { container_id: 0, host_id: 1000, size: 10 };

    fn of(options: Option<(Reach, Option<&str>)>, uids: &[IdMapping], new: u64) -> Result<Option<IdMap>, PlanError> {
        let mount = Mount { uid_mappings: uids.into(), gid_mappings: uids.into(), ..Mount::default() };
        let (uid_mappings, gid_mappings) = (vec![ONE], vec![ONE]);
        plan(3, &mount, options, &NamespacePlan { new, uid_mappings, gid_mappings, ..NamespacePlan::default() })
    }

    #[test]
    fn maps_come_from_the_mount_the_option_or_the_container() {
        let map =
            |reach, ids: &[IdMapping]| Some(IdMap { reach, ids: Ids::Map { uids: ids.into(), gids: ids.into() } });
        assert_eq!(of(None, &[], NEWUSER).expect("plan"), None);
        assert_eq!(of(None, &[ONE], 0).expect("plan"), map(Reach::One, &[ONE]));
        assert_eq!(of(Some((Reach::Tree, None)), &[], NEWUSER).expect("plan"), map(Reach::Tree, &[ONE]));
        let text = "uids=@0-3-2#7-8-9;gids=@0-3-2#7-8-9";
        let ids =
            [IdMapping { container_id: 0, host_id: 1003, size: 2 }, IdMapping { container_id: 7, host_id: 8, size: 9 }];
        assert_eq!(of(Some((Reach::One, Some(text))), &[], NEWUSER).expect("plan"), map(Reach::One, &ids));
    }

    #[test]
    fn refusals_name_the_mount() {
        let empty = IdMapping { size: 0, ..ONE };
        for (options, ids, field) in [
            (Some((Reach::One, None)), &[][..], "mounts[3].options"),
            (None, &[empty], "mounts[3].uidMappings"),
            (Some((Reach::One, Some("uids=1-2"))), &[], "mounts[3].options"),
            (Some((Reach::One, Some("uids=1-2-3"))), &[], "mounts[3].options"),
            (Some((Reach::One, Some("uids=@99-99-1;gids=1-1-1"))), &[], "mounts[3].options"),
            (Some((Reach::One, Some("uids=1-1-1;gids=1-1-1"))), &[ONE], "mounts[3].options"),
        ] {
            let error = of(options, ids, 0).expect_err(field).to_string();
            assert!(error.contains(field), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_map_or_refused(text in "(uids|gids)=@?[0-9#=;@a-z-]{0,40}(;(uids|gids)=[0-9]{1,11}-[0-9]{1,11}-[0-9]{1,11})?") {
            if let Ok(Some(IdMap { ids: Ids::Map { uids, gids }, .. })) = of(Some((Reach::One, Some(&text))), &[], NEWUSER) {
                assert!(!uids.is_empty() && !gids.is_empty() && uids.iter().all(|one| one.size > 0));
            }
        }
    }
}
