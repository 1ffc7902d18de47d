//! What several plugins want of one container, and who wants it: nothing may be set by two of them.

use std::collections::{BTreeMap, HashMap};

use proto::nri::pkg::api::v1alpha1::{
    CompoundFieldOwners, ContainerAdjustment, ContainerUpdate, Field, FieldOwners, Hooks, LinuxContainerAdjustment,
    LinuxResources, OwningPlugins,
};

use super::error::NriError;

/// What is set, as `Field` names it; the second is its key, where there are several.
type Place = (Field, String);

/// The name in a removal, which has a `-` in front.
pub(super) fn removed(name: &str) -> Option<&str> {
    name.strip_prefix('-')
}

/// What plugins have answered so far.
#[derive(Debug, Default)]
pub(super) struct Collected {
    /// All adjustments as one, for those who judge them.
    pub(super) adjust: ContainerAdjustment,
    /// Changes of other containers, one for each.
    pub(super) updates: Vec<ContainerUpdate>,
    owners: HashMap<String, BTreeMap<Place, String>>,
}

impl Collected {
    /// Notes what a plugin wants of the new container `id`.
    pub(super) fn adjust(&mut self, id: &str, plugin: &str, wish: &ContainerAdjustment) -> Result<(), NriError> {
        let linux = wish.linux.clone().unwrap_or_default();
        let mut places: Vec<Place> = Vec::new();
        let mut gone: Vec<Place> = Vec::new();
        let mut keyed = |field: Field, name: &str| match removed(name) {
            Some(name) => gone.push((field, name.to_owned())),
            None => places.push((field, name.to_owned())),
        };
        wish.annotations.keys().for_each(|key| keyed(Field::Annotations, key));
        wish.mounts.iter().for_each(|mount| keyed(Field::Mounts, &mount.destination));
        wish.env.iter().for_each(|variable| keyed(Field::Env, &variable.key));
        linux.devices.iter().for_each(|device| keyed(Field::Devices, &device.path));
        linux.namespaces.iter().for_each(|namespace| keyed(Field::Namespace, &namespace.r#type));
        linux.sysctl.keys().for_each(|key| keyed(Field::Sysctl, key));
        linux.net_devices.keys().for_each(|key| keyed(Field::LinuxNetDevices, key));
        places.extend(wish.rlimits.iter().map(|limit| (Field::Rlimits, limit.r#type.clone())));
        places.extend(wish.cdi_devices.iter().map(|device| (Field::CdiDevices, device.name.clone())));
        let rdt = linux.rdt.clone().unwrap_or_default();
        for (field, is_set) in [
            (Field::CgroupsPath, !linux.cgroups_path.is_empty()),
            (Field::OomScoreAdj, linux.oom_score_adj.is_some()),
            (Field::IoPriority, linux.io_priority.is_some()),
            (Field::SeccompPolicy, linux.seccomp_policy.is_some()),
            (Field::LinuxSched, linux.scheduler.is_some()),
            (Field::MemoryPolicy, linux.memory_policy.is_some()),
            (Field::RdtClosId, rdt.clos_id.is_some()),
            (Field::RdtSchemata, rdt.schemata.is_some()),
            (Field::RdtEnableMonitoring, rdt.enable_monitoring.is_some()),
            (Field::Args, !wish.args.is_empty()),
        ] {
            if is_set {
                places.push((field, String::new()));
            }
        }
        if wish.args.first().is_some_and(String::is_empty) {
            gone.push((Field::Args, String::new()));
        }
        if rdt.remove {
            gone.extend([Field::RdtClosId, Field::RdtSchemata, Field::RdtEnableMonitoring].map(|f| (f, String::new())));
        }
        places.extend(fields(linux.resources.as_ref()));
        let owners = self.owners.entry(id.to_owned()).or_default();
        gone.iter().for_each(|place| drop(owners.remove(place)));
        self.claim(id, plugin, places)?;
        if wish.hooks.is_some() {
            // Hooks are added to one another.
            let owners = self.owners.entry(id.to_owned()).or_default();
            let all = owners.entry((Field::OciHooks, String::new())).or_default();
            *all = if all.is_empty() { plugin.to_owned() } else { format!("{all},{plugin}") };
        }
        merge(&mut self.adjust, wish);
        Ok(())
    }

    /// Notes what a plugin wants of other containers; `creating` is none yet.
    pub(super) fn update(
        &mut self,
        creating: Option<&str>,
        plugin: &str,
        updates: Vec<ContainerUpdate>,
    ) -> Result<(), NriError> {
        for update in updates {
            let id = update.container_id.clone();
            if creating == Some(id.as_str()) {
                let what = format!("it wants to update container {id}, which is being created");
                return Err(NriError::Wish { plugin: plugin.to_owned(), what });
            }
            let resources = update.linux.as_ref().and_then(|linux| linux.resources.clone());
            match self.claim(&id, plugin, fields(resources.as_ref())) {
                Err(_) if update.ignore_failure => continue,
                other => other?,
            }
            match self.updates.iter_mut().find(|other| other.container_id == id) {
                Some(there) => {
                    there.ignore_failure &= update.ignore_failure;
                    let into = there.linux.get_or_insert_default().resources.get_or_insert_default();
                    merge_resources(into, &resources.unwrap_or_default());
                }
                None => self.updates.push(update),
            }
        }
        Ok(())
    }

    fn claim(&mut self, id: &str, plugin: &str, places: Vec<Place>) -> Result<(), NriError> {
        let owners = self.owners.entry(id.to_owned()).or_default();
        for (field, key) in &places {
            if let Some(other) = owners.get(&(*field, key.clone())).filter(|other| *other != plugin) {
                let what = if key.is_empty() {
                    field.as_str_name().to_owned()
                } else {
                    format!("{} {key}", field.as_str_name())
                };
                return Err(NriError::Conflict {
                    first: other.clone(),
                    second: plugin.to_owned(),
                    what: format!("{what} of container {id}"),
                });
            }
        }
        owners.extend(places.into_iter().map(|place| (place, plugin.to_owned())));
        Ok(())
    }

    /// Who has set what.
    pub(super) fn owners(&self) -> OwningPlugins {
        let of_one = |places: &BTreeMap<Place, String>| {
            let mut all = FieldOwners::default();
            for ((field, key), plugin) in places {
                if key.is_empty() {
                    all.simple.insert(*field as i32, plugin.clone());
                } else {
                    let of_field: &mut CompoundFieldOwners = all.compound.entry(*field as i32).or_default();
                    of_field.owners.insert(key.clone(), plugin.clone());
                }
            }
            all
        };
        OwningPlugins { owners: self.owners.iter().map(|(id, places)| (id.clone(), of_one(places))).collect() }
    }
}

/// What resources have set.
fn fields(resources: Option<&LinuxResources>) -> Vec<Place> {
    let Some(resources) = resources else { return Vec::new() };
    let (memory, cpu) = (resources.memory.unwrap_or_default(), resources.cpu.clone().unwrap_or_default());
    let mut all: Vec<Place> = [
        (Field::MemLimit, memory.limit.is_some()),
        (Field::MemReservation, memory.reservation.is_some()),
        (Field::MemSwapLimit, memory.swap.is_some()),
        (Field::MemKernelLimit, memory.kernel.is_some()),
        (Field::MemTcpLimit, memory.kernel_tcp.is_some()),
        (Field::MemSwappiness, memory.swappiness.is_some()),
        (Field::MemDisableOomKiller, memory.disable_oom_killer.is_some()),
        (Field::MemUseHierarchy, memory.use_hierarchy.is_some()),
        (Field::CpuShares, cpu.shares.is_some()),
        (Field::CpuQuota, cpu.quota.is_some()),
        (Field::CpuPeriod, cpu.period.is_some()),
        (Field::CpuRealtimeRuntime, cpu.realtime_runtime.is_some()),
        (Field::CpuRealtimePeriod, cpu.realtime_period.is_some()),
        (Field::CpuSetCpUs, !cpu.cpus.is_empty()),
        (Field::CpuSetMems, !cpu.mems.is_empty()),
        (Field::PidsLimit, resources.pids.is_some()),
        (Field::BlockioClass, resources.blockio_class.is_some()),
        (Field::RdtClass, resources.rdt_class.is_some()),
    ]
    .into_iter()
    .filter(|(_, is_set)| *is_set)
    .map(|(field, _)| (field, String::new()))
    .collect();
    all.extend(resources.hugepage_limits.iter().map(|limit| (Field::HugepageLimits, limit.page_size.clone())));
    all.extend(resources.unified.keys().map(|key| (Field::CgroupsUnified, key.clone())));
    all
}

/// Puts what `new` has set over `old`.
pub(super) fn merge_resources(old: &mut LinuxResources, new: &LinuxResources) {
    fn put<T: Clone>(old: &mut Option<T>, new: &Option<T>) {
        if new.is_some() {
            old.clone_from(new);
        }
    }
    if let Some(new) = &new.memory {
        let old = old.memory.get_or_insert_default();
        put(&mut old.limit, &new.limit);
        put(&mut old.reservation, &new.reservation);
        put(&mut old.swap, &new.swap);
        put(&mut old.kernel, &new.kernel);
        put(&mut old.kernel_tcp, &new.kernel_tcp);
        put(&mut old.swappiness, &new.swappiness);
        put(&mut old.disable_oom_killer, &new.disable_oom_killer);
        put(&mut old.use_hierarchy, &new.use_hierarchy);
        // Swap counts memory in: a limit that has grown past it takes it along.
        if let (Some(limit), Some(swap), None) = (&old.limit, &mut old.swap, &new.swap)
            && swap.value > 0
            && (limit.value < 0 || limit.value > swap.value)
        {
            swap.value = limit.value;
        }
    }
    if let Some(new) = &new.cpu {
        let old = old.cpu.get_or_insert_default();
        put(&mut old.shares, &new.shares);
        put(&mut old.quota, &new.quota);
        put(&mut old.period, &new.period);
        put(&mut old.realtime_runtime, &new.realtime_runtime);
        put(&mut old.realtime_period, &new.realtime_period);
        for (old, new) in [(&mut old.cpus, &new.cpus), (&mut old.mems, &new.mems)] {
            if !new.is_empty() {
                old.clone_from(new);
            }
        }
    }
    for limit in &new.hugepage_limits {
        old.hugepage_limits.retain(|other| other.page_size != limit.page_size);
        old.hugepage_limits.push(limit.clone());
    }
    put(&mut old.blockio_class, &new.blockio_class);
    put(&mut old.rdt_class, &new.rdt_class);
    put(&mut old.pids, &new.pids);
    old.unified.extend(new.unified.clone());
    old.devices.extend(new.devices.iter().cloned());
}

/// A later plugin's list over an earlier one's: what it names again, or removes, is no longer what it was.
fn overlay<T: Clone>(old: &mut Vec<T>, new: &[T], name: impl Fn(&T) -> &str) {
    let plain = |item: &T| removed(name(item)).unwrap_or(name(item)).to_owned();
    old.retain(|item| new.iter().all(|other| plain(other) != plain(item)));
    old.extend(new.iter().cloned());
}

fn overlay_map<T: Clone>(old: &mut HashMap<String, T>, new: &HashMap<String, T>) {
    old.retain(|key, _| !new.contains_key(&format!("-{key}")));
    old.extend(new.clone());
}

fn merge(old: &mut ContainerAdjustment, new: &ContainerAdjustment) {
    overlay_map(&mut old.annotations, &new.annotations);
    overlay(&mut old.mounts, &new.mounts, |mount| &mount.destination);
    overlay(&mut old.env, &new.env, |variable| &variable.key);
    overlay(&mut old.rlimits, &new.rlimits, |limit| &limit.r#type);
    overlay(&mut old.cdi_devices, &new.cdi_devices, |device| &device.name);
    match new.args.split_first() {
        None => {}
        Some((first, rest)) if first.is_empty() => old.args = rest.to_vec(),
        Some(_) => old.args.clone_from(&new.args),
    }
    if let Some(new) = &new.hooks {
        let old: &mut Hooks = old.hooks.get_or_insert_default();
        for (old, new) in [
            (&mut old.prestart, &new.prestart),
            (&mut old.create_runtime, &new.create_runtime),
            (&mut old.create_container, &new.create_container),
            (&mut old.start_container, &new.start_container),
            (&mut old.poststart, &new.poststart),
            (&mut old.poststop, &new.poststop),
        ] {
            old.extend(new.iter().cloned());
        }
    }
    let Some(new) = &new.linux else { return };
    let old: &mut LinuxContainerAdjustment = old.linux.get_or_insert_default();
    overlay(&mut old.devices, &new.devices, |device| &device.path);
    overlay(&mut old.namespaces, &new.namespaces, |namespace| &namespace.r#type);
    overlay_map(&mut old.sysctl, &new.sysctl);
    overlay_map(&mut old.net_devices, &new.net_devices);
    if let Some(new) = &new.resources {
        merge_resources(old.resources.get_or_insert_default(), new);
    }
    if !new.cgroups_path.is_empty() {
        old.cgroups_path.clone_from(&new.cgroups_path);
    }
    macro_rules! put {
        ($($field:ident),*) => {
            $(if new.$field.is_some() {
                old.$field.clone_from(&new.$field);
            })*
        };
    }
    put!(oom_score_adj, io_priority, seccomp_policy, scheduler, memory_policy);
    if let Some(new) = &new.rdt {
        if new.remove {
            old.rdt = None;
        }
        let old = old.rdt.get_or_insert_default();
        old.remove |= new.remove;
        if new.clos_id.is_some() {
            old.clos_id.clone_from(&new.clos_id);
        }
        if new.schemata.is_some() {
            old.schemata.clone_from(&new.schemata);
        }
        if new.enable_monitoring.is_some() {
            old.enable_monitoring.clone_from(&new.enable_monitoring);
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::nri::pkg::api::v1alpha1::{
        Hook, KeyValue, LinuxContainerUpdate, LinuxCpu, LinuxMemory, Mount, OptionalInt64, OptionalUInt64,
    };

    use super::*;

    fn memory(limit: i64) -> LinuxResources {
        let limit = Some(OptionalInt64 { value: limit });
        LinuxResources { memory: Some(LinuxMemory { limit, ..Default::default() }), ..Default::default() }
    }

    fn shares(value: u64) -> LinuxResources {
        let shares = Some(OptionalUInt64 { value });
        LinuxResources { cpu: Some(LinuxCpu { shares, ..Default::default() }), ..Default::default() }
    }

    fn update(id: &str, resources: LinuxResources, ignore_failure: bool) -> ContainerUpdate {
        let linux = Some(LinuxContainerUpdate { resources: Some(resources) });
        ContainerUpdate { container_id: id.into(), linux, ignore_failure }
    }

    fn env(key: &str, value: &str) -> ContainerAdjustment {
        ContainerAdjustment { env: vec![KeyValue { key: key.into(), value: value.into() }], ..Default::default() }
    }

    fn of_resources(resources: LinuxResources) -> ContainerAdjustment {
        let linux = LinuxContainerAdjustment { resources: Some(resources), ..Default::default() };
        ContainerAdjustment { linux: Some(linux), ..Default::default() }
    }

    #[test]
    fn two_that_set_one_thing_are_both_named() {
        let mount = |destination: &str| ContainerAdjustment {
            mounts: vec![Mount { destination: destination.into(), ..Default::default() }],
            ..Default::default()
        };
        let annotation = |key: &str| ContainerAdjustment {
            annotations: [(key.to_owned(), "v".to_owned())].into(),
            ..Default::default()
        };
        let args = |args: &[&str]| ContainerAdjustment {
            args: args.iter().map(|word| (*word).to_owned()).collect(),
            ..Default::default()
        };
        let table = [
            (env("A", "1"), env("A", "2"), Some("Env A")),
            (env("A", "1"), env("B", "1"), None),
            (env("A", "1"), env("-A", ""), None),
            (mount("/m"), mount("/m"), Some("Mounts /m")),
            (annotation("k"), annotation("k"), Some("Annotations k")),
            (annotation("k"), annotation("-k"), None),
            (args(&["a"]), args(&["b"]), Some("Args")),
            (args(&["a"]), args(&["", "b"]), None),
            (of_resources(memory(1)), of_resources(memory(1)), Some("MemLimit")),
            (of_resources(memory(1)), of_resources(shares(1)), None),
        ];
        for (first, second, what) in table {
            let mut collected = Collected::default();
            collected.adjust("c", "00-a", &first).unwrap();
            // The same one may say it again.
            collected.adjust("c", "00-a", &first).unwrap();
            let outcome = collected.adjust("c", "10-b", &second).map_err(|error| error.to_string());
            let wanted = what.map(|what| format!("NRI plugins 00-a and 10-b both set {what} of container c"));
            assert_eq!(outcome.err(), wanted, "{second:?}");
        }
    }

    #[test]
    fn what_was_removed_may_be_set_again() {
        let mut collected = Collected::default();
        collected.adjust("c", "00-a", &env("A", "1")).unwrap();
        let mut wish = env("-A", "");
        wish.env.extend(env("A", "2").env);
        collected.adjust("c", "10-b", &wish).unwrap();
        let said: Vec<_> = collected.adjust.env.iter().map(|one| (one.key.as_str(), one.value.as_str())).collect();
        assert_eq!(said, [("-A", ""), ("A", "2")]);
        assert_eq!(collected.owners().owners["c"].compound[&(Field::Env as i32)].owners["A"], "10-b");
    }

    #[test]
    fn hooks_add_up() {
        let mut collected = Collected::default();
        let hook = |path: &str| ContainerAdjustment {
            hooks: Some(Hooks {
                poststop: vec![Hook { path: path.into(), ..Default::default() }],
                ..Default::default()
            }),
            ..Default::default()
        };
        collected.adjust("c", "00-a", &hook("/a")).unwrap();
        collected.adjust("c", "10-b", &hook("/b")).unwrap();
        assert_eq!(collected.adjust.hooks.as_ref().unwrap().poststop.len(), 2);
        assert_eq!(collected.owners().owners["c"].simple[&(Field::OciHooks as i32)], "00-a,10-b");
    }

    #[test]
    fn updates_of_one_container_become_one() {
        let mut collected = Collected::default();
        collected.update(Some("new"), "00-a", vec![update("x", memory(1), true)]).unwrap();
        collected.update(Some("new"), "10-b", vec![update("x", shares(2), false)]).unwrap();
        assert_eq!(collected.updates.len(), 1);
        let resources = collected.updates[0].linux.clone().unwrap().resources.unwrap();
        assert_eq!((resources.memory, resources.cpu), (memory(1).memory, shares(2).cpu));
        assert!(!collected.updates[0].ignore_failure);
        let clash = collected.update(None, "20-c", vec![update("x", memory(2), false)]).unwrap_err();
        assert_eq!(clash.to_string(), "NRI plugins 00-a and 20-c both set MemLimit of container x");
        collected.update(None, "20-c", vec![update("x", memory(2), true)]).unwrap();
        assert_eq!(collected.updates[0].linux.clone().unwrap().resources.unwrap().memory, memory(1).memory);
        assert!(collected.update(Some("new"), "20-c", vec![update("new", memory(2), true)]).is_err());
    }

    #[test]
    fn swap_grows_with_memory() {
        let mut old = memory(100);
        old.memory.as_mut().unwrap().swap = Some(OptionalInt64 { value: 100 });
        merge_resources(&mut old, &memory(50));
        assert_eq!(old.memory.unwrap().swap.unwrap().value, 100);
        merge_resources(&mut old, &memory(300));
        assert_eq!(old.memory.unwrap().swap.unwrap().value, 300);
        merge_resources(&mut old, &memory(-1));
        assert_eq!(old.memory.unwrap().swap.unwrap().value, -1);
    }
}
