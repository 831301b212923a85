//! The device layer against a stand-in for the driver that checks order and lifetimes.

mod communicators;
mod launches;
mod lifetimes;
mod products;
mod standin;
