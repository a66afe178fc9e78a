//! What is seen of the daemon from outside, and that seeing it costs nothing.
//!
//! - `scrape`: requests for metrics and health, and clients that misbehave at them
//! - `formats`: programs of others read the text, and what is shipped fits it
//! - `values`: what the metrics say is what clients have seen, also over restarts and kills

mod formats;
mod scrape;
mod values;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use testkit::{Daemon, Plan, SOON, connect};

/// A listener for metrics to be passed, and its address.
pub fn passed() -> (OwnedFd, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener.into(), address)
}

/// A daemon whose metrics are on a passed socket, and their address.
fn observed(config: &str) -> (Daemon, SocketAddr) {
    let (listener, address) = passed();
    let daemon = Plan::new()
        .config(config)
        .pass(vec![listener], "metrics")
        .start();
    (daemon, address)
}

/// A response, taken apart.
#[derive(Clone, Debug)]
pub struct Response {
    status: u16,
    headers: String,
    body: String,
}

impl Response {
    fn of(text: &str) -> Self {
        let (headers, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("{text:?}"));
        let status = headers.split(' ').nth(1).unwrap().parse().unwrap();
        let length = headers
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        let length: usize = length.unwrap().parse().unwrap();
        assert!(body.is_empty() || body.len() == length, "{text}");
        assert!(headers.contains("\r\nConnection: close"), "{text}");
        Self {
            status,
            headers: headers.into(),
            body: body.into(),
        }
    }

    /// The value of a sample, which is named with its labels.
    #[track_caller]
    pub fn value(&self, sample: &str) -> f64 {
        let start = format!("{sample} ");
        let line = self.body.lines().find_map(|line| line.strip_prefix(&start));
        let value = line.unwrap_or_else(|| panic!("no {sample} in\n{}", self.body));
        value.parse().unwrap()
    }

    /// The sum of a family over all its labels.
    fn sum(&self, name: &str) -> f64 {
        let samples = self.body.lines().filter_map(|line| {
            let (sample, value) = line.rsplit_once(' ')?;
            (sample.split('{').next() == Some(name)).then(|| value.parse::<f64>().unwrap())
        });
        samples.sum()
    }
}

/// Sends a request as it is, and reads the response up to its end.
fn ask(address: SocketAddr, request: &str) -> Response {
    let mut client = connect(address);
    client.set_read_timeout(Some(SOON)).unwrap();
    client.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    Response::of(&text)
}

fn get(address: SocketAddr, path: &str) -> Response {
    ask(
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    )
}

pub fn metrics(address: SocketAddr) -> Response {
    let response = get(address, "/metrics");
    assert_eq!(response.status, 200);
    response
}
