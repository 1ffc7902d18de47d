//! The systemd driver (`--systemd-cgroup`): a container's cgroup is a transient scope that systemd makes, and that is delegated
//! to us, so everything systemd has no property for is written to the files as with the other driver.
//!
//! ```text
//! clone -> StartTransientUnit(scope, PIDs=[child], limits) -> JobRemoved -> files -> the child goes on
//! update: SetUnitProperties -> files          delete: StopUnit -> JobRemoved -> ResetFailedUnit -> folders that are left
//! ```
//! A scope without processes cannot be, hence after the clone. Root asks the system's systemd; anybody else, and root of a user
//! namespace whose pid 1 is not its own, asks the user's.

#![expect(clippy::disallowed_methods, reason = "the socket of the host's systemd")]

pub(crate) mod annotations;
mod bus;
pub(crate) mod names;
mod properties;

#[cfg(test)]
mod tests;

use std::os::unix::fs::MetadataExt;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::spec::{DeviceRule, Resources};
pub(crate) use bus::BusError;
use bus::{Address, Bus};
use names::UnitName;
use properties::Abilities;
pub(crate) use properties::Property;
use sys::dbus::Value;

/// The unit of a container, as state.json remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Unit {
    name: String,
    slice: String,
    /// True if it is the user's systemd that has it.
    user: bool,
}

/// What systemd is told about a new unit besides its limits.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wishes {
    /// From annotations; they win over everything else.
    pub(crate) properties: Vec<Property>,
    pub(crate) id: String,
}

impl Unit {
    /// The unit for a container.
    pub(crate) fn new(name: &UnitName, id: &str, user: bool) -> Self {
        let default = if user { "user.slice" } else { "system.slice" };
        let or = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
        Self { name: or(&name.scope, &names::default_scope(id)), slice: or(&name.slice, default), user }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where systemd will put it, relative to the roots of the hierarchies.
    pub(crate) fn path(&self) -> Result<String, BusError> {
        let base = if self.user { self.connect()?.property("ControlGroup")? } else { String::new() };
        Ok(self.path_below(&base))
    }

    fn path_below(&self, base: &str) -> String {
        // The slice was checked with config.json.
        let slice = names::expand_slice(&self.slice).unwrap_or_default();
        let parts = [base.trim_matches('/'), &slice, &names::folder(&self.name)];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
    }

    fn connect(&self) -> Result<Bus, BusError> {
        let variable = |name| std::env::var(name).unwrap_or_default();
        let cure = if self.user {
            "is DBUS_SESSION_BUS_ADDRESS or XDG_RUNTIME_DIR of a session with systemd (loginctl enable-linger) set? \
             Without systemd leave --systemd-cgroup out"
        } else {
            "is systemd pid 1? Without systemd leave --systemd-cgroup out"
        };
        let addresses = if self.user {
            user_addresses(&variable("DBUS_SESSION_BUS_ADDRESS"), &variable("XDG_RUNTIME_DIR"))
        } else {
            system_addresses(&variable("DBUS_SYSTEM_BUS_ADDRESS"))
        };
        Bus::connect(&addresses, cure)
    }

    /// Starts the scope with a process in it, and waits until it is there.
    pub(crate) fn start(
        &self,
        pid: Pid,
        wishes: &Wishes,
        resources: &Resources,
        devices: &[DeviceRule],
        unified: bool,
    ) -> Result<(), BusError> {
        start(&mut self.connect()?, self, pid, wishes, (resources, devices), unified)
    }

    /// Tells systemd about new limits, so that it does not write the old ones again.
    pub(crate) fn update(&self, resources: &Resources, unified: bool) -> Result<(), BusError> {
        let mut bus = self.connect()?;
        let properties = properties::of_resources(resources, abilities(&mut bus, resources, unified)?);
        if properties.is_empty() {
            return Ok(());
        }
        // At runtime only: the unit does not outlive the machine's.
        bus.call("SetUnitProperties", &[Value::text(&self.name), Value::Bool(true), list(properties)]).map(drop)
    }

    /// Stops the scope if it is still there, and forgets that it failed.
    pub(crate) fn stop(&self) -> Result<(), BusError> {
        stop(&mut self.connect()?, self)
    }
}

fn stop(bus: &mut Bus, unit: &Unit) -> Result<(), BusError> {
    let name = Value::text(&unit.name);
    match bus.run_job("StopUnit", &[name.clone(), Value::text("replace")]) {
        // systemd has noticed by itself that it is empty.
        Err(error) if error.is("NoSuchUnit") => return Ok(()),
        done => done?,
    }
    match bus.call("ResetFailedUnit", &[name]) {
        Err(error) if error.is("NoSuchUnit") => Ok(()),
        done => done.map(drop),
    }
}

fn start(
    bus: &mut Bus,
    unit: &Unit,
    pid: Pid,
    wishes: &Wishes,
    (resources, devices): (&Resources, &[DeviceRule]),
    unified: bool,
) -> Result<(), BusError> {
    let can = abilities(bus, resources, unified)?;
    let mut all: Vec<Property> = Vec::new();
    let mut set = |name: &str, value: Value| all.push((name.to_owned(), value));
    set("Description", Value::Text(format!("Berth container {}", wishes.id)));
    set("Slice", Value::text(&unit.slice));
    set("Delegate", Value::Bool(true));
    // Whoever manages the container stops it at shutdown.
    set("DefaultDependencies", Value::Bool(false));
    let io = if unified { "IOAccounting" } else { "BlockIOAccounting" };
    for name in ["MemoryAccounting", "CPUAccounting", "TasksAccounting", io] {
        set(name, Value::Bool(true));
    }
    set("PIDs", Value::Array("u".into(), vec![Value::U32(pid.as_raw() as u32)]));
    // A user's systemd may not load filters.
    let devices = if unit.user { Vec::new() } else { properties::of_devices(devices) };
    let more =
        properties::of_resources(resources, can).into_iter().chain(devices).chain(wishes.properties.iter().cloned());
    for (name, value) in more {
        all.retain(|(known, _)| *known != name);
        all.push((name, value));
    }
    let auxiliary = Value::Array("(sa(sv))".into(), Vec::new());
    let body = [Value::text(&unit.name), Value::text("replace"), list(all), auxiliary];
    match bus.run_job("StartTransientUnit", &body) {
        // One that failed before stays known by its name.
        Err(error) if error.is("UnitExists") => {
            match bus.call("ResetFailedUnit", &[Value::text(&unit.name)]) {
                Err(error) if !error.is("NoSuchUnit") => return Err(error),
                _ => {}
            }
            bus.run_job("StartTransientUnit", &body)
        }
        done => done,
    }
}

fn abilities(bus: &mut Bus, resources: &Resources, unified: bool) -> Result<Abilities, BusError> {
    let asked = properties::needs_version(resources);
    let version = if asked { properties::version(&bus.property("Version")?) } else { 0 };
    Ok(Abilities { unified, version })
}

/// `a(sv)`
fn list(properties: Vec<Property>) -> Value {
    let entry = |(name, value)| Value::Struct(vec![Value::Text(name), Value::Variant(Box::new(value))]);
    Value::Array("(sv)".into(), properties.into_iter().map(entry).collect())
}

/// True if the caller's systemd is that of a user, not the system's: for anybody but root, and for root of a user namespace in
/// which pid 1 is somebody else's.
pub(crate) fn is_users() -> bool {
    !nix::unistd::geteuid().is_root() || !std::fs::metadata("/proc/1").is_ok_and(|found| found.uid() == 0)
}

fn system_addresses(given: &str) -> Vec<Address> {
    let brokers =
        if given.is_empty() { vec!["/run/dbus/system_bus_socket".to_owned()] } else { sys::dbus::sockets(given) };
    addresses(brokers, Some("/run/systemd/private".to_owned()))
}

fn user_addresses(given: &str, runtime: &str) -> Vec<Address> {
    let mut brokers = sys::dbus::sockets(given);
    let below = |name: &str| (!runtime.is_empty()).then(|| format!("{runtime}/{name}"));
    brokers.extend(below("bus").filter(|bus| !brokers.contains(bus)));
    addresses(brokers, below("systemd/private"))
}

/// The broker first, as its policy may allow more than the private socket does, which is for the owner alone.
fn addresses(brokers: Vec<String>, private: Option<String>) -> Vec<Address> {
    let brokers = brokers.into_iter().map(|socket| Address { socket, brokered: true });
    brokers.chain(private.map(|socket| Address { socket, brokered: false })).collect()
}
