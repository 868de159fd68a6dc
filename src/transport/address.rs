//! Where a request comes from: the connection's other end, or what proxies that the configuration names
//! say about it. Pure.
//!
//! `X-Forwarded-For` grows to the right: each proxy appends whom it was asked by. So it is read from the
//! right, and only as long as trusted proxies wrote it; what stands further left is the sender's to choose.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::http::HeaderMap;
use ipnet::IpNet;

/// The header that proxies append to.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// More proxies in a row than anyone has; the rest of a longer header is not read.
const MAX_HOPS: usize = 16;

/// The proxies that are believed.
#[derive(Debug, Clone, Default)]
pub(crate) struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    pub(crate) fn new(networks: Vec<IpNet>) -> Self {
        TrustedProxies(networks)
    }

    /// The address of the device that a request comes from: the rightmost that is no trusted proxy's.
    /// Where the header ends, or cannot be read, it is the last proxy's that could be named.
    pub(crate) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut nearest = peer.to_canonical();
        if !self.trusts(nearest) {
            return nearest;
        }
        let lines = headers.get_all(FORWARDED_FOR).iter().rev();
        let hops = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
        for hop in hops.take(MAX_HOPS) {
            let Some(address) = hop_address(hop) else { break };
            nearest = address;
            if !self.trusts(nearest) {
                break;
            }
        }
        nearest
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:4711`.
fn hop_address(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?.trim();
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

/// Whom an address stands for: one IPv4 address, or the IPv6 network of a subscriber, who has as many
/// addresses as they like.
pub(crate) fn neighbourhood(address: IpAddr) -> IpAddr {
    const SUBSCRIBER: u128 = !0 << 64;
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & SUBSCRIBER)),
        v4 => v4,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn client(trusted: &[&str], peer: &str, lines: &[&[u8]]) -> String {
        let networks = trusted.iter().map(|text| text.parse().unwrap()).collect();
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(FORWARDED_FOR, HeaderValue::from_bytes(line).unwrap());
        }
        TrustedProxies::new(networks).client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn only_what_trusted_proxies_wrote_counts() {
        let trusted = &["10.0.0.0/8", "fd00::/8"];
        let cases: &[(&str, &[&[u8]], &str)] = &[
            // Nobody is believed who is not named.
            ("192.0.2.9", &[b"198.51.100.1"], "192.0.2.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[b"198.51.100.1"], "198.51.100.1"),
            // What the sender put there itself stands further left.
            ("10.0.0.1", &[b"1.1.1.1, 198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &[b"1.1.1.1, 198.51.100.1, 10.0.0.7"], "198.51.100.1"),
            ("10.0.0.1", &[b"10.0.0.66, 198.51.100.1"], "198.51.100.1"),
            // Several lines are one list, in their order.
            ("10.0.0.1", &[b"1.1.1.1", b"198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &[b"198.51.100.1", b"10.0.0.7, 10.0.0.8"], "198.51.100.1"),
            // Proxies all the way.
            ("10.0.0.1", &[b"10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            // What cannot be read ends what is known.
            ("10.0.0.1", &[b"198.51.100.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &[b"198.51.100.1, unknown, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &[b""], "10.0.0.1"),
            ("10.0.0.1", &[b"198.51.100.1,"], "10.0.0.1"),
            ("10.0.0.1", &[b"198.51.100.1\t"], "198.51.100.1"),
            ("10.0.0.1", &[b"198.51.100.1, \xff\xfe"], "10.0.0.1"),
            ("10.0.0.1", &[b"198.51.100.1, 010.0.0.9"], "10.0.0.1"),
            ("10.0.0.1", &[b"198.51.100.1, 10.0.0.9 evil"], "10.0.0.1"),
            // Ports and brackets.
            ("10.0.0.1", &[b"198.51.100.1:4711"], "198.51.100.1"),
            ("10.0.0.1", &[b"[2001:db8::1]:4711"], "2001:db8::1"),
            ("10.0.0.1", &[b"[2001:db8::1]"], "2001:db8::1"),
            ("fd00::1", &[b"2001:db8::1"], "2001:db8::1"),
            // The same machine, seen through an IPv6 socket, or written that way.
            ("::ffff:10.0.0.1", &[b"198.51.100.1"], "198.51.100.1"),
            ("::ffff:192.0.2.9", &[b"198.51.100.1"], "192.0.2.9"),
            ("10.0.0.1", &[b"198.51.100.1, ::ffff:10.0.0.7"], "198.51.100.1"),
        ];
        for (peer, lines, expected) in cases {
            assert_eq!(client(trusted, peer, lines), *expected, "{peer} {lines:?}");
        }
        assert_eq!(client(&[], "10.0.0.1", &[b"198.51.100.1"]), "10.0.0.1");
        let endless = b"10.0.0.2,".repeat(5_000);
        assert_eq!(client(trusted, "10.0.0.1", &[b"198.51.100.1", &endless[..44_999]]), "10.0.0.2");
    }

    #[test]
    fn a_subscriber_has_one_network() {
        let of = |text: &str| neighbourhood(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(of("192.0.2.1"), "192.0.2.1");
        assert_eq!(of("::ffff:192.0.2.1"), "192.0.2.1");
    }
}
