//! `docker rmi` and `docker image prune`: which names go, and whether the image goes with them.
//!
//! By name: the name goes; the image follows if that was the last and nothing uses it. By id: all names go, if they are in
//! one repository or by force. An image that a running container uses is never deleted, one that a stopped container
//! uses only by force.

use super::{
    ImageError, ImageGroup, ImageUser, ImageUsers, Images, Record,
    names::{RecordName, Wanted, dangling_name},
    resolve::means,
};
use crate::{ids::short, time::Timestamp};
use proto::{digest::Digest, image_ref::ImageRef};
use serde::Serialize;

/// One line of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Removed {
    /// A name is gone.
    Untagged(String),
    /// An image is gone.
    Deleted(String),
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Positions of the records whose names are told as removed.
    untag: Vec<usize>,
    fate: Fate,
}

#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// Other names remain.
    Named,
    /// A container needs it: it stays without a name.
    Kept,
    Deleted,
}

/// Decides; pure.
fn plan(group: &ImageGroup, text: &str, wanted: &Wanted, force: bool, users: &[ImageUser]) -> Result<Plan, ImageError> {
    let names: Vec<(usize, &ImageRef)> =
        group.records.iter().enumerate().filter_map(|(at, record)| Some((at, record.kind.reference()?))).collect();
    let references: Vec<&ImageRef> = names.iter().map(|(_, reference)| *reference).collect();
    let running = users.iter().find(|user| user.running);
    let named = match wanted {
        Wanted::Name { reference, .. } => names
            .iter()
            .find(|(_, name)| *name == &**reference)
            .or_else(|| names.iter().find(|(at, _)| means(reference, &group.records[*at])))
            .copied(),
        Wanted::Id(_) | Wanted::Prefix(_) => None,
    };
    if let Some((at, name)) = named {
        if let (false, true, Some(user)) = (force, is_single(&references), users.first()) {
            return Err(ImageError::Conflict(format!(
                "conflict: unable to remove repository reference {text:?} (must force) - container {} is using its referenced image {}",
                short(&user.container_id),
                group.id.short()
            )));
        }
        let mut untag = vec![at];
        let same_repository = |other: &ImageRef| other.repository() == name.repository();
        let other_tag = names.iter().any(|(o, r)| *o != at && r.digest().is_none() && same_repository(r));
        if name.digest().is_none() && !other_tag {
            untag.extend(names.iter().filter(|(o, r)| *o != at && same_repository(r)).map(|(o, _)| *o));
        }
        let fate = match (names.len() > untag.len(), running) {
            (true, _) => Fate::Named,
            (false, Some(_)) => Fate::Kept,
            (false, None) => Fate::Deleted,
        };
        return Ok(Plan { untag, fate });
    }
    let conflict = |forcing: &str, why: String| {
        Err(ImageError::Conflict(format!("conflict: unable to delete {} ({forcing}) - {why}", group.id.short())))
    };
    if let Some(user) = running {
        let container = short(&user.container_id);
        return conflict("cannot be forced", format!("image is being used by running container {container}"));
    }
    if !force {
        if !is_single(&references) {
            return conflict("must be forced", "image is referenced in multiple repositories".into());
        }
        if let Some(user) = users.first() {
            let container = short(&user.container_id);
            return conflict("must be forced", format!("image is being used by stopped container {container}"));
        }
    }
    Ok(Plan { untag: names.iter().map(|(at, _)| *at).collect(), fate: Fate::Deleted })
}

/// At most one tag, and everything in one repository.
fn is_single(references: &[&ImageRef]) -> bool {
    let tags = references.iter().filter(|reference| reference.digest().is_none()).count();
    let one_repository = references.windows(2).all(|pair| pair[0].repository() == pair[1].repository());
    references.len() <= 1 || (tags <= 1 && one_repository)
}

/// What a prune takes.
pub struct PruneOptions<'a> {
    /// Also images with names.
    pub named: bool,
    /// Only those made before.
    pub until: Option<Timestamp>,
    /// Only those whose labels pass.
    pub labels: &'a (dyn Fn(&std::collections::BTreeMap<String, String>) -> bool + Sync),
    /// Only this one.
    pub only: Option<&'a Digest>,
}

impl Images {
    /// Removes what `text` names. Gives the image that it was, and what happened in order.
    pub async fn remove(
        &self,
        text: &str,
        force: bool,
        users: &(dyn ImageUsers + Sync),
    ) -> Result<(ImageGroup, Vec<Removed>), ImageError> {
        let _names = self.names.lock().await;
        let wanted = Wanted::parse(text)?;
        let group = self.resolve_group(text).await?;
        proto::fault!("engine.rmi.found");
        let plan = plan(&group, text, &wanted, force, &users.users_of(&group.id))?;
        let removed = self.carry_out(&group, plan).await?;
        Ok((group, removed))
    }

    /// Removes images that no container uses. Gives what happened, image by image, and the bytes that were freed.
    pub async fn prune(
        &self,
        options: &PruneOptions<'_>,
        users: &(dyn ImageUsers + Sync),
    ) -> Result<(Vec<(ImageGroup, Vec<Removed>)>, i64), ImageError> {
        let _names = self.names.lock().await;
        let measure =
            async || self.disk_usage().await.map_err(|error| ImageError::supervisor("measure", "images", error));
        let before = measure().await?;
        let mut done = Vec::new();
        for group in self.groups().await? {
            let config = &group.content.config;
            let spared = (group.is_dangling() || options.named).then_some(()).is_none()
                || !users.users_of(&group.id).is_empty()
                || options.until.is_some_and(|until| config.created > until)
                || !(options.labels)(&config.config.labels)
                || options.only.is_some_and(|only| *only != group.id);
            if spared {
                continue;
            }
            let names = group.records.iter().enumerate().filter(|(_, r)| r.kind != RecordName::Dangling);
            let plan = Plan { untag: names.map(|(at, _)| at).collect(), fate: Fate::Deleted };
            let removed = self.carry_out(&group, plan).await?;
            done.push((group, removed));
        }
        // What is gone from the disk, and not what the images would have taken each alone.
        let freed = if done.is_empty() { 0 } else { (before - measure().await?).max(0) };
        Ok((done, freed))
    }

    async fn carry_out(&self, group: &ImageGroup, plan: Plan) -> Result<Vec<Removed>, ImageError> {
        let mut removed = Vec::new();
        if plan.fate == Fate::Kept {
            // First, so that at no moment nothing holds the image.
            for at in &plan.untag {
                let target = &group.records[*at].target;
                self.put_record(&dangling_name(&target.digest), target).await?;
            }
        }
        for at in &plan.untag {
            let record = &group.records[*at];
            self.delete_record(&record.name).await?;
            removed.push(Removed::Untagged(shown(record)));
        }
        if plan.fate == Fate::Deleted {
            for record in &group.records {
                if record.kind == RecordName::Dangling {
                    self.delete_record(&record.name).await?;
                }
            }
            removed.push(Removed::Deleted(group.id.to_string()));
        }
        Ok(removed)
    }
}

fn shown(record: &Record) -> String {
    record.kind.reference().map_or_else(|| record.name.clone(), ImageRef::familiar)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::testing::group;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn users(running: &[bool]) -> Vec<ImageUser> {
        running.iter().map(|running| ImageUser { container_id: "c".repeat(64), running: *running }).collect()
    }

    fn decide(names: &[&str], text: &str, force: bool, running: &[bool]) -> Result<(Vec<usize>, Fate), String> {
        let group = group(names);
        let text = if text == "ID" { group.id.short() } else { text.to_owned() };
        plan(&group, &text, &by_id_or_name(&group, &text), force, &users(running))
            .map(|plan| (plan.untag, plan.fate))
            .map_err(|error| error.to_string())
    }

    fn by_id_or_name(group: &ImageGroup, text: &str) -> Wanted {
        if text == group.id.short() { Wanted::Prefix(text.to_owned()) } else { Wanted::parse(text).unwrap() }
    }

    #[test]
    fn dockers_rules() {
        let (a1, a2, b1) = ("docker.io/library/a:1", "docker.io/library/a:2", "docker.io/library/b:1");
        let pin = &*format!("docker.io/library/a@{D}");
        let gone = dangling_name(D);
        let id12 = group(&[a1]).id.short();
        let c12 = "c".repeat(12);
        let used = |name: &str| {
            format!(
                "conflict: unable to remove repository reference \"{name}\" (must force) - container {c12} is using its referenced image {id12}"
            )
        };
        let refused = |how: &str, why: &str| format!("conflict: unable to delete {id12} ({how}) - {why}");
        type Case<'a> = (&'a [&'a str], &'a str, bool, &'a [bool], Result<(Vec<usize>, Fate), String>);
        let cases: &[Case<'_>] = &[
            (&[a1], "a:1", false, &[], Ok((vec![0], Fate::Deleted))),
            (&[a1], "ID", false, &[], Ok((vec![0], Fate::Deleted))),
            (&[a1, b1], "a:1", false, &[], Ok((vec![0], Fate::Named))),
            (&[a1, b1], "a:1", false, &[true], Ok((vec![0], Fate::Named))),
            (&[a1, pin], "a:1", false, &[], Ok((vec![0, 1], Fate::Deleted))),
            (&[a1, a2, pin], "a:1", false, &[], Ok((vec![0], Fate::Named))),
            (&[a1, pin], &pin["docker.io/library/".len()..], false, &[], Ok((vec![1], Fate::Named))),
            (&[a1], "a:1", false, &[false], Err(used("a:1"))),
            (&[a1], "a:1", true, &[false], Ok((vec![0], Fate::Deleted))),
            (&[a1], "a:1", true, &[true], Ok((vec![0], Fate::Kept))),
            (
                &[a1, b1],
                "ID",
                false,
                &[],
                Err(refused("must be forced", "image is referenced in multiple repositories")),
            ),
            (
                &[a1, a2],
                "ID",
                false,
                &[],
                Err(refused("must be forced", "image is referenced in multiple repositories")),
            ),
            (&[a1, b1], "ID", true, &[], Ok((vec![0, 1], Fate::Deleted))),
            (&[a1, b1], "ID", true, &[false], Ok((vec![0, 1], Fate::Deleted))),
            (
                &[a1],
                "ID",
                false,
                &[false],
                Err(refused("must be forced", &format!("image is being used by stopped container {c12}"))),
            ),
            (
                &[a1],
                "ID",
                true,
                &[true],
                Err(refused("cannot be forced", &format!("image is being used by running container {c12}"))),
            ),
            (&[&gone], "ID", false, &[], Ok((vec![], Fate::Deleted))),
        ];
        for (names, text, force, running, expected) in cases {
            assert_eq!(&decide(names, text, *force, running), expected, "{names:?} {text} {force} {running:?}");
        }
    }

    #[test]
    fn lines_of_the_answer() {
        let lines = [Removed::Untagged("a:1".into()), Removed::Deleted(D.into())];
        let json = serde_json::to_string(&lines).unwrap();
        assert_eq!(json, format!(r#"[{{"Untagged":"a:1"}},{{"Deleted":"{D}"}}]"#));
    }
}
