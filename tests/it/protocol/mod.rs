//! Every byte comes back, in order, whatever clients and the kernel do.
//!
//! - `echo`: every byte comes back, whatever the client does
//! - `limits`: connections, sources, time-outs, bytes
//! - `stop`: draining, deadlines, the second signal
//! - `faults`: system calls that fail, descriptors that run out
//! - `workers`: several workers serve as one does

mod echo;
mod faults;
mod limits;
mod stop;
mod workers;
