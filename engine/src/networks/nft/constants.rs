//! Numbers of nftables' netlink protocol (linux/netfilter/nf_tables.h) that neither `libc` nor `nix` has.

/// Attributes of a table.
pub(super) mod table {
    pub(in super::super) const NAME: u16 = 1;
}

/// Attributes of a chain.
pub(super) mod chain {
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const NAME: u16 = 3;
    pub(in super::super) const HOOK: u16 = 4;
    pub(in super::super) const POLICY: u16 = 5;
    pub(in super::super) const TYPE: u16 = 7;
    pub(in super::super) const HOOK_NUMBER: u16 = 1;
    pub(in super::super) const HOOK_PRIORITY: u16 = 2;
}

/// Attributes of a rule.
pub(super) mod rule {
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const CHAIN: u16 = 2;
    pub(in super::super) const HANDLE: u16 = 3;
    pub(in super::super) const EXPRESSIONS: u16 = 4;
    pub(in super::super) const USERDATA: u16 = 7;
    /// Type of a comment within the user data (libnftnl's own encoding: type, length, text).
    pub(in super::super) const COMMENT: u8 = 0;
}

/// Attributes of sets and of their elements.
pub(super) mod set {
    pub(in super::super) const TABLE: u16 = 1;
    pub(in super::super) const NAME: u16 = 2;
    pub(in super::super) const FLAGS: u16 = 3;
    pub(in super::super) const KEY_TYPE: u16 = 4;
    pub(in super::super) const KEY_LENGTH: u16 = 5;
    pub(in super::super) const DATA_TYPE: u16 = 6;
    pub(in super::super) const DATA_LENGTH: u16 = 7;
    pub(in super::super) const ID: u16 = 10;
    pub(in super::super) const USERDATA: u16 = 13;
    /// User data by which the nft tool knows in which byte order it has to show keys (libnftnl: type, length, number): names of
    /// links are in that of the host.
    pub(in super::super) const KEY_BYTE_ORDER: u8 = 0;
    pub(in super::super) const HOST_ORDER: u32 = 1;
    pub(in super::super) const LIST_TABLE: u16 = 1;
    pub(in super::super) const LIST_SET: u16 = 2;
    pub(in super::super) const LIST_ELEMENTS: u16 = 3;
    pub(in super::super) const ELEMENT_KEY: u16 = 1;
    pub(in super::super) const ELEMENT_DATA: u16 = 2;
}

/// The element of a list, a value, and the parts of a verdict.
pub(super) mod data {
    pub(in super::super) const LIST_ELEMENT: u16 = 1;
    pub(in super::super) const VALUE: u16 = 1;
    pub(in super::super) const VERDICT: u16 = 2;
    pub(in super::super) const VERDICT_CODE: u16 = 1;
    pub(in super::super) const VERDICT_CHAIN: u16 = 2;
}

/// Attributes of expressions.
pub(super) mod expression {
    pub(in super::super) const NAME: u16 = 1;
    pub(in super::super) const DATA: u16 = 2;
    pub(in super::super) const META_DESTINATION: u16 = 1;
    pub(in super::super) const META_KEY: u16 = 2;
    pub(in super::super) const CT_DESTINATION: u16 = 1;
    pub(in super::super) const CT_KEY: u16 = 2;
    pub(in super::super) const FIB_DESTINATION: u16 = 1;
    pub(in super::super) const FIB_RESULT: u16 = 2;
    pub(in super::super) const FIB_FLAGS: u16 = 3;
    pub(in super::super) const PAYLOAD_DESTINATION: u16 = 1;
    pub(in super::super) const PAYLOAD_BASE: u16 = 2;
    pub(in super::super) const PAYLOAD_OFFSET: u16 = 3;
    pub(in super::super) const PAYLOAD_LENGTH: u16 = 4;
    pub(in super::super) const BITWISE_SOURCE: u16 = 1;
    pub(in super::super) const BITWISE_DESTINATION: u16 = 2;
    pub(in super::super) const BITWISE_LENGTH: u16 = 3;
    pub(in super::super) const BITWISE_MASK: u16 = 4;
    pub(in super::super) const BITWISE_XOR: u16 = 5;
    pub(in super::super) const CMP_SOURCE: u16 = 1;
    pub(in super::super) const CMP_OPERATION: u16 = 2;
    pub(in super::super) const CMP_DATA: u16 = 3;
    pub(in super::super) const LOOKUP_SET: u16 = 1;
    pub(in super::super) const LOOKUP_SOURCE: u16 = 2;
    pub(in super::super) const LOOKUP_DESTINATION: u16 = 3;
    pub(in super::super) const LOOKUP_FLAGS: u16 = 5;
    pub(in super::super) const PAYLOAD_SOURCE: u16 = 5;
    pub(in super::super) const PAYLOAD_CHECKSUM_TYPE: u16 = 6;
    pub(in super::super) const PAYLOAD_CHECKSUM_OFFSET: u16 = 7;
    pub(in super::super) const IMMEDIATE_DESTINATION: u16 = 1;
    pub(in super::super) const IMMEDIATE_DATA: u16 = 2;
    pub(in super::super) const NAT_TYPE: u16 = 1;
    pub(in super::super) const NAT_FAMILY: u16 = 2;
    pub(in super::super) const NAT_ADDRESS: u16 = 3;
    pub(in super::super) const NAT_PORT: u16 = 5;
}

/// Look up the destination address in the routing table (`NFTA_FIB_F_DADDR`).
pub(super) const FIB_DESTINATION_ADDRESS: u32 = 1 << 1;
/// The answer wanted is the type of the address (`NFT_FIB_RESULT_ADDRTYPE`).
pub(super) const FIB_ADDRESS_TYPE: u32 = 3;

/// Bits of `ct state`: `NF_CT_STATE_BIT` of IP_CT_ESTABLISHED and IP_CT_RELATED.
pub(super) const CT_ESTABLISHED_OR_RELATED: u32 = 1 << 1 | 1 << 2;
/// Bit of `ct status` that says that the destination was rewritten (`IPS_DST_NAT`).
pub(super) const CT_STATUS_DNAT: u32 = 1 << 5;

/// A lookup that matches what is not in the set (`NFT_LOOKUP_F_INV`).
pub(super) const LOOKUP_INVERTED: u32 = 1;
/// The kind of checksum that TCP and UDP have (`NFT_PAYLOAD_CSUM_INET`).
pub(super) const CHECKSUM_INET: u32 = 1;

/// Verdict codes (`NF_DROP`, `NF_ACCEPT`).
pub(super) const DROP: u32 = 0;
pub(super) const ACCEPT: u32 = 1;

/// The registers of nftables: the verdict, the first of 16 bytes, and the four-byte ones that follow in it.
pub(super) mod register {
    pub(in super::super) const VERDICT: u32 = 0;
    pub(in super::super) const FIRST: u32 = 1;
    pub(in super::super) const SECOND: u32 = 2;
    pub(in super::super) const SECOND_WORD: u32 = 9;

    /// The word that comes so many bytes after the first.
    pub(in super::super) fn after(bytes: u32) -> u32 {
        8 + bytes / 4
    }
}

/// Numbers by which the nft tool knows the types of keys and values; only for showing them.
pub(super) mod datatype {
    const IPV4_ADDRESS: u32 = 7;
    const IPV6_ADDRESS: u32 = 8;
    const PROTOCOL: u32 = 12;
    const SERVICE: u32 = 13;
    const LINK_NAME: u32 = 41;

    /// Name of a link.
    pub(in super::super) const LINK: u32 = LINK_NAME;
    /// link . link
    pub(in super::super) const LINK_LINK: u32 = LINK_NAME << 6 | LINK_NAME;

    fn address(is_ipv4: bool) -> u32 {
        if is_ipv4 { IPV4_ADDRESS } else { IPV6_ADDRESS }
    }

    /// protocol . port
    pub(in super::super) const PROTOCOL_PORT: u32 = PROTOCOL << 6 | SERVICE;

    /// protocol . address . port
    pub(in super::super) fn protocol_address_port(is_ipv4: bool) -> u32 {
        (PROTOCOL << 6 | address(is_ipv4)) << 6 | SERVICE
    }

    /// address . port
    pub(in super::super) fn address_port(is_ipv4: bool) -> u32 {
        address(is_ipv4) << 6 | SERVICE
    }
}
