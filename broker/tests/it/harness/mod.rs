//! What the tests of this binary stand on. Start here when you write one:
//!
//! - a test of the whole broker: [`broker`] makes one on a database of the test's own, [`follow`] reads from it
//! - a test of the process, its settings or its life: [`serving`] is `walcast serve`, [`process`] any command
//! - a test that changes a server, crashes it or counts its slots: [`server`] makes one for it alone,
//!   [`pooler`] what may stand in front of it
//! - a test of several brokers behind one address: [`balancer`]; over several Redis servers: [`redis_group`]
//! - a test of the HTTP side: [`edge`] is a hub fed by hand, [`plain`] a client that shows every byte
//! - a test of faults: [`proxy`] is a link that fails, [`crowd`] writes down what many saw, for the judge
//! - a test of decoding and seeding without a broker: [`database`]
//!
//! Nothing sleeps to let something happen: [`wait`] for a condition, whose limit only a broken broker reaches.

pub(crate) mod balancer;
pub(crate) mod broker;
pub(crate) mod crowd;
pub(crate) mod database;
pub(crate) mod edge;
pub(crate) mod follow;
pub(crate) mod plain;
pub(crate) mod pooler;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod redis_group;
pub(crate) mod server;
pub(crate) mod serving;
pub(crate) mod wait;
