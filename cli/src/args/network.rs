//! Arguments of the commands that change networks.

use super::values;
use clap::Args;

/// `network create`
#[derive(Debug, Default, Args)]
pub struct CreateArgs {
    /// Containers may be connected by hand, too (networks of a swarm)
    #[arg(long)]
    pub attachable: bool,
    /// Addresses that are taken already: name=address
    #[arg(long, value_name = "map")]
    pub aux_address: Vec<String>,
    /// Network to take the configuration from
    #[arg(long, value_name = "string")]
    pub config_from: Option<String>,
    /// Make a configuration that others can use, and no network
    #[arg(long)]
    pub config_only: bool,
    /// Driver of the network
    #[arg(short, long, value_name = "string", default_value = "bridge")]
    pub driver: String,
    /// Gateway of the subnet
    #[arg(long, value_name = "ipSlice", value_delimiter = ',')]
    pub gateway: Vec<String>,
    /// Network of a swarm's routing mesh
    #[arg(long)]
    pub ingress: bool,
    /// Nothing leads out of the network
    #[arg(long)]
    pub internal: bool,
    /// Part of the subnet that containers get addresses of
    #[arg(long, value_name = "ipNetSlice", value_delimiter = ',')]
    pub ip_range: Vec<String>,
    /// Driver of the addresses
    #[arg(long, value_name = "string", default_value = "default")]
    pub ipam_driver: String,
    /// Option of the driver of the addresses
    #[arg(long, value_name = "map")]
    pub ipam_opt: Vec<String>,
    /// IPv4 addresses
    #[arg(long, value_name = "bool", default_value = "true", action = clap::ArgAction::Set)]
    pub ipv4: bool,
    /// IPv6 addresses
    #[arg(long)]
    pub ipv6: bool,
    /// Set a label
    #[arg(long, value_name = "list")]
    pub label: Vec<String>,
    /// Option of the driver
    #[arg(short, long, value_name = "map")]
    pub opt: Vec<String>,
    /// Where the network is known: local or swarm
    #[arg(long, value_name = "string")]
    pub scope: Option<String>,
    /// Subnet: address/prefix
    #[arg(long, value_name = "strings", value_delimiter = ',')]
    pub subnet: Vec<String>,
    /// Name of the network
    #[arg(value_name = "NETWORK", required = true)]
    pub network: String,
}

/// `network connect`
#[derive(Debug, Default, Args)]
pub struct ConnectArgs {
    /// Another name of the container in the network
    #[arg(long, value_name = "strings", value_delimiter = ',')]
    pub alias: Vec<String>,
    /// Option of the driver
    #[arg(long, value_name = "strings", value_delimiter = ',')]
    pub driver_opt: Vec<String>,
    /// Which network gives the default route: the highest number
    #[arg(long, value_name = "int", value_parser = values::int, default_value = "0", hide_default_value = true)]
    pub gw_priority: i64,
    /// IPv4 address
    #[arg(long, value_name = "ip", value_parser = values::ip_address)]
    pub ip: Option<String>,
    /// IPv6 address
    #[arg(long, value_name = "ip", value_parser = values::ip_address)]
    pub ip6: Option<String>,
    /// Link to another container: name[:alias]
    #[arg(long, value_name = "list", value_parser = values::link)]
    pub link: Vec<String>,
    /// Link-local address
    #[arg(long, value_name = "ipSlice", value_delimiter = ',', value_parser = values::ip_address)]
    pub link_local_ip: Vec<String>,
    /// Name or id
    #[arg(value_name = "NETWORK", required = true)]
    pub network: String,
    /// Name or id
    #[arg(value_name = "CONTAINER", required = true)]
    pub container: String,
}

/// `network disconnect`
#[derive(Debug, Args)]
pub struct DisconnectArgs {
    /// Even when the container can't be reached
    #[arg(short, long)]
    pub force: bool,
    /// Name or id
    #[arg(value_name = "NETWORK", required = true)]
    pub network: String,
    /// Name or id
    #[arg(value_name = "CONTAINER", required = true)]
    pub container: String,
}

/// `network rm`
#[derive(Debug, Args)]
pub struct RmArgs {
    /// A network that does not exist is no error
    #[arg(short, long)]
    pub force: bool,
    /// Names or ids
    #[arg(value_name = "NETWORK", required = true)]
    pub networks: Vec<String>,
}
