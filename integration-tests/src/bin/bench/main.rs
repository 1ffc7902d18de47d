//! Berth beside its peers: the same work on the same machine in the same run, medians, and their ratio.
//!
//! A peer that isn't installed, or doesn't start, leaves its cells empty. No figure is asserted: this prints a table.

mod build;
mod bundle;
mod clients;
mod cri;
mod density;
mod engines;
mod floor;
mod images;
mod network;
mod table;

use table::Table;

fn main() -> std::process::ExitCode {
    let only: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, rootfs] = only.as_slice()
        && mode == "floor"
    {
        return floor::run(rootfs);
    }
    if let [mode, command @ ..] = only.as_slice()
        && mode == "peak"
    {
        return bundle::peak(command);
    }
    let wanted = |part: &str| only.is_empty() || only.iter().any(|o| o == part);
    let mut table = Table::default();
    if wanted("runtime") {
        bundle::measure(&mut table);
    }
    if wanted("engine") {
        engines::measure(&mut table);
    }
    if wanted("clients") {
        clients::measure(&mut table);
    }
    // A thousand containers are not for every run.
    if only.iter().any(|part| part == "density") {
        density::measure(&mut table);
    }
    if only.iter().any(|part| part == "cri") {
        cri::measure(&mut table);
    }
    if only.iter().any(|part| part == "build") {
        build::measure(&mut table);
    }
    if let [mode, names @ ..] = only.as_slice()
        && mode == "images"
    {
        images::measure(&mut table, names);
    }
    if let [mode, parts @ ..] = only.as_slice()
        && mode == "network"
    {
        network::measure(&mut table, parts);
    }
    table.print();
    std::process::ExitCode::SUCCESS
}
