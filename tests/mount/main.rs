//! A real mount of a real daemon, driven with `std::fs` as programs drive it, on a server that
//! counts what it is asked. Each file is about one thing that users rely on.

#[path = "../common/mod.rs"]
mod common;

mod accounts;
mod attributes;
mod background;
mod ceph;
mod changes;
mod copies;
mod counts;
mod credentials;
mod demo;
mod disk;
mod disk_trouble;
mod doctor;
mod expire;
mod express;
mod faults;
mod given;
mod hints;
mod in_process;
mod interrupts;
mod life;
mod limits;
mod looking;
mod matrix;
mod models;
mod mountpoints;
mod names;
mod ordinary_user;
mod outlive;
mod panics;
mod passthrough;
mod proxies;
mod read_only;
mod reads;
mod service;
mod several;
mod shared;
mod stores;
mod xattrs;
