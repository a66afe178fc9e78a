//! PROXY headers: whatever arrives, the answer is the same in how many pieces it comes, and what is
//! taken for a header is what another implementation takes for one.
//!
//! `cargo +nightly fuzz run proxy_header -- -max_total_time=3600`
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcp_echo::proxy_header::{MAX_LENGTH, parse};

fuzz_target!(|bytes: &[u8]| {
    let all = parse(bytes);
    if let Ok(Some(header)) = &all {
        let length = usize::from(header.length);
        assert!(length <= bytes.len() && length <= MAX_LENGTH);
        // It ends where it ends, and not before.
        assert_eq!(parse(&bytes[..length]), all);
        assert_eq!(parse(&bytes[..length - 1]), Ok(None));
        let config = proxy_header::ParseConfig::default();
        match proxy_header::ProxyHeader::parse(bytes, config) {
            Ok((theirs, end)) => {
                assert_eq!(end, length);
                let theirs = theirs.proxied_address().filter(|addresses| {
                    addresses.protocol == proxy_header::Protocol::Stream
                });
                let theirs = theirs.map(|found| (found.source.ip().to_canonical(), found.source.port()));
                let ours = header.addresses.map(|found| (found.source.ip(), found.source.port()));
                if header.version == 2 {
                    assert_eq!(ours, theirs);
                }
            }
            // It refuses addresses in a connection of the proxy itself that are to be ignored.
            Err(_) => assert_eq!(bytes.get(12), Some(&0x20)),
        }
    }
    let cut = bytes.len() / 2;
    match parse(&bytes[..cut]) {
        Ok(None) => {}
        early => assert_eq!(early, all),
    }
});
