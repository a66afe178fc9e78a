//! The options of a listener: as the configuration asks, as the kernel has them, and what makes the
//! difference.  The log and `tcp-echo check` show them.
//!
//! An option that cannot be read back has no row; no value is guessed.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, SockRef};

use super::kernel::Kernel;
use super::sockopt::{Queue, accept_queue, domain};
use crate::config::Options;
use crate::config::units::{OrAuto, OrOff, Size, duration, on_off, or_off, size};

/// One option as asked and as it is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Row {
    /// Its key in the configuration.
    pub option: &'static str,
    /// The value that the configuration asks for; empty: it does not name the option.
    pub asked: String,
    /// The value that the kernel has.
    pub effective: String,
    /// What makes the difference, if there is one, or what else to know; may be empty.
    pub note: String,
}

impl Row {
    /// Whether the kernel has another value than the one that was asked for.
    #[must_use]
    pub(crate) fn differs(&self) -> bool {
        !self.asked.is_empty() && self.asked != "auto" && self.asked != self.effective
    }
}

/// Reads the options of a listener back.  For a Unix socket there is only the backlog, worked out as
/// the kernel does, which does not report it.
#[must_use]
pub(crate) fn read_back(socket: &impl AsFd, options: &Options, kernel: &Kernel) -> Vec<Row> {
    let mut rows = Rows(Vec::new());
    let queue = accept_queue(socket);
    let socket = SockRef::from(socket);
    if domain(&socket) == Some(Domain::UNIX) {
        rows.backlog(options, kernel, queue);
        return rows.0;
    }
    rows.sharing(&socket, options);
    rows.backlog(options, kernel, queue);
    rows.buffers(&socket, options, kernel);
    rows.sending(&socket, options);
    rows.keepalive(&socket, options);
    rows.path(&socket, options);
    rows.0
}

struct Rows(Vec<Row>);

impl Rows {
    fn add(
        &mut self,
        option: &'static str,
        asked: Option<String>,
        effective: io::Result<String>,
        note: &str,
    ) {
        if let Ok(effective) = effective {
            let asked = asked.unwrap_or_default();
            self.0.push(Row {
                option,
                asked,
                effective,
                note: note.into(),
            });
        }
    }

    fn switch(&mut self, option: &'static str, asked: Option<bool>, effective: io::Result<bool>) {
        self.add(option, asked.map(on_off), effective.map(on_off), "");
    }

    fn sharing(&mut self, socket: &SockRef<'_>, options: &Options) {
        self.switch(
            "reuse-address",
            options.reuse_address,
            socket.reuse_address(),
        );
        self.switch("reuse-port", options.reuse_port, socket.reuse_port());
        if domain(socket) == Some(Domain::IPV6) {
            self.switch("v6only", options.v6only, socket.only_v6());
        }
    }

    fn backlog(&mut self, options: &Options, kernel: &Kernel, queue: Option<Queue>) {
        let asked = options.backlog.map(|backlog| u64::from(backlog.0));
        let mut note = kernel.somaxconn.map_or_else(String::new, |most| {
            let limited = asked.is_some_and(|asked| asked > most);
            format!(
                "{}net.core.somaxconn = {most}",
                if limited { "limited by " } else { "" }
            )
        });
        if let Some(drops @ 1..) = queue.and_then(|queue| queue.drops) {
            let comma = if note.is_empty() { "" } else { ", " };
            note += &format!("{comma}{drops} handshakes dropped since it was opened");
        }
        // Where the kernel does not report the result, its rule (listen(2)).
        let computed = asked
            .zip(kernel.somaxconn)
            .map(|(asked, most)| asked.min(most));
        if let Some(effective) = queue.map(|queue| u64::from(queue.limit)).or(computed) {
            self.add(
                "backlog",
                asked.map(|n| n.to_string()),
                Ok(effective.to_string()),
                &note,
            );
        }
    }

    fn buffers(&mut self, socket: &SockRef<'_>, options: &Options, kernel: &Kernel) {
        let receive = (kernel.rmem_max, kernel.tcp_rmem_max, "rmem_max");
        let send = (kernel.wmem_max, kernel.tcp_wmem_max, "wmem_max");
        self.buffer(
            "receive-buffer",
            options.receive_buffer,
            socket.recv_buffer_size(),
            receive,
        );
        self.buffer(
            "send-buffer",
            options.send_buffer,
            socket.send_buffer_size(),
            send,
        );
    }

    fn buffer(
        &mut self,
        option: &'static str,
        asked: Option<OrAuto<Size>>,
        effective: io::Result<usize>,
        (most, tuned, name): (Option<u64>, Option<u64>, &str),
    ) {
        let note = match (asked, most) {
            (Some(OrAuto(Some(Size(asked)))), Some(most)) if asked > most => {
                format!(
                    "limited by net.core.{name} = {most}, then doubled by the kernel; autotuning is off"
                )
            }
            (Some(OrAuto(Some(_))), _) => {
                "doubled by the kernel for its own bookkeeping; autotuning is off".to_owned()
            }
            _ => tuned.map_or_else(String::new, |most| {
                format!("autotuned by the kernel up to {}", size(most))
            }),
        };
        let asked = asked
            .map(|OrAuto(asked)| asked.map_or_else(|| "auto".to_owned(), |asked| size(asked.0)));
        self.add(
            option,
            asked,
            effective.map(|bytes| size(bytes as u64)),
            &note,
        );
    }

    fn sending(&mut self, socket: &SockRef<'_>, options: &Options) {
        self.switch("nodelay", options.nodelay, socket.tcp_nodelay());
        let note = match options.quickack {
            Some(true) => "set again after each read: costs a system call",
            _ => "the kernel's own choice as it goes",
        };
        // A listener itself always reads back as "on", whatever its connections have.
        let effective = options
            .quickack
            .map(on_off)
            .ok_or_else(|| io::ErrorKind::NotFound.into());
        self.add("quickack", options.quickack.map(on_off), effective, note);
    }

    fn keepalive(&mut self, socket: &SockRef<'_>, options: &Options) {
        self.switch("keepalive", options.keepalive, socket.keepalive());
        let asked = options.keepalive_idle.map(|span| duration(span.0));
        self.add(
            "keepalive-idle",
            asked,
            socket.tcp_keepalive_time().map(duration),
            "",
        );
        let asked = options.keepalive_interval.map(|span| duration(span.0));
        self.add(
            "keepalive-interval",
            asked,
            socket.tcp_keepalive_interval().map(duration),
            "",
        );
        let asked = options.keepalive_probes.map(|count| count.0.to_string());
        let effective = socket
            .tcp_keepalive_retries()
            .map(|count| count.to_string());
        self.add("keepalive-probes", asked, effective, "");
        let asked = options
            .user_timeout
            .map(|OrOff(span)| or_off(span.map(|span| span.0), duration));
        let effective = socket.tcp_user_timeout().map(|span| or_off(span, duration));
        self.add("user-timeout", asked, effective, "");
    }

    fn path(&mut self, socket: &SockRef<'_>, options: &Options) {
        let asked = options
            .notsent_lowat
            .map(|OrOff(bytes)| or_off(bytes.map(|bytes| bytes.0), size));
        let effective = socket
            .tcp_notsent_lowat()
            .map(|bytes| or_off(Some(u64::from(bytes)).filter(|bytes| *bytes > 0), size));
        self.add("notsent-lowat", asked, effective, "");
        let asked = options.congestion.as_ref().map(|name| name.0.clone());
        let effective = socket.tcp_congestion().map(|name| {
            String::from_utf8_lossy(&name)
                .trim_end_matches('\0')
                .to_owned()
        });
        self.add("congestion", asked, effective, "");
        let field = match domain(socket) {
            Some(Domain::IPV6) => socket.tclass_v6(),
            _ => socket.tos_v4(),
        };
        let asked = options.dscp.map(|dscp| dscp.0.to_string());
        self.add(
            "dscp",
            asked,
            field.map(|field| (field >> 2).to_string()),
            "",
        );
    }
}

/// The span of a time-out as seconds, for tables.
#[must_use]
pub(crate) fn seconds(span: Duration) -> String {
    format!("{} s", (span.as_secs_f64() * 1000.0).round() / 1000.0)
}
