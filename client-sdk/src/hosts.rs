//! The brokers of a client: any of them does, so one is kept until it fails.
//!
//! Their order is drawn once per client, so that the clients of a fleet spread over them. All calls and
//! subscriptions of a client begin with the same one, and each goes on by itself.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rand::seq::SliceRandom;
use tokio::time::Instant;

use crate::connection::Endpoint;
use crate::ladder::Ladder;
use crate::{Error, Transport};

/// All brokers.
#[derive(Debug)]
pub(crate) struct Hosts {
    list: Vec<Host>,
    /// The one that served last.
    current: AtomicUsize,
}

/// One broker.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) endpoint: Arc<Endpoint>,
    ladder: Mutex<Ladder>,
    /// The log was told what is wrong with it.
    told: AtomicBool,
}

impl Hosts {
    /// In an order of its own; at least one.
    pub(crate) fn new(mut endpoints: Vec<Endpoint>) -> Result<Self, Error> {
        if endpoints.is_empty() {
            return Err(Error::Setup("no broker is named; give at least one by `hosts`".to_owned()));
        }
        endpoints.shuffle(&mut rand::rng());
        let host = |endpoint| Host {
            endpoint: Arc::new(endpoint),
            ladder: Mutex::default(),
            told: AtomicBool::new(false),
        };
        Ok(Self { list: endpoints.into_iter().map(host).collect(), current: AtomicUsize::new(0) })
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// The number of the one that served last.
    pub(crate) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// Numbers go round.
    pub(crate) fn at(&self, number: usize) -> &Host {
        &self.list[number % self.list.len()]
    }

    /// The one behind `number`, from which others may begin, too.
    pub(crate) fn behind(&self, number: usize) -> usize {
        let next = (number + 1) % self.list.len();
        // Whoever left it meanwhile knows no less.
        let _ = self.current.compare_exchange(number, next, Ordering::Relaxed, Ordering::Relaxed);
        next
    }
}

impl Host {
    fn ladder(&self) -> std::sync::MutexGuard<'_, Ladder> {
        self.ladder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By what it is followed.
    pub(crate) fn transport(&self) -> Transport {
        self.ladder().transport(Instant::now())
    }

    /// `transport` does not get through to it; whether there is another.
    pub(crate) fn step_down(&self, transport: Transport, error: &Error) -> bool {
        let lesser = self.ladder().step_down(transport, Instant::now());
        if lesser {
            tracing::debug!(%error, %transport, "walcast: the next transport is tried");
        }
        lesser
    }

    /// Tells the log, once until it works again, what somebody has to mend.
    pub(crate) fn complain(&self, error: &Error) {
        let lasting = match error {
            Error::Certificate { .. } | Error::Resolve { .. } => true,
            #[cfg(feature = "tls")]
            Error::Connect { source, .. } => crate::tls::out_of_date(source),
            // What is forbidden may be this call alone.
            _ => error.status() == Some(401),
        };
        if lasting && !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(address = self.endpoint.address(), %error, "walcast: a broker cannot be used");
        }
    }

    /// It works.
    pub(crate) fn works(&self) {
        if self.told.swap(false, Ordering::Relaxed) {
            tracing::info!(address = self.endpoint.address(), "walcast: the broker can be used again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::Settings;

    fn hosts(count: usize) -> Hosts {
        let url = |i: usize| format!("http://h{i:02}:1");
        let endpoints = (0..count).map(|i| Endpoint::parse(&url(i), &Settings::default()).unwrap());
        Hosts::new(endpoints.collect()).unwrap()
    }

    fn order(hosts: &Hosts) -> Vec<String> {
        (0..hosts.len()).map(|i| hosts.at(i).endpoint.address().to_owned()).collect()
    }

    #[test]
    fn clients_spread() {
        let orders: Vec<_> = (0..50).map(|_| order(&hosts(10))).collect();
        assert!(orders.iter().any(|order| order != &orders[0]));
        for mut order in orders {
            order.sort();
            assert_eq!(order, (0..10).map(|i| format!("h{i:02}:1")).collect::<Vec<_>>());
        }
    }

    #[test]
    fn numbers_go_round_and_who_is_late_changes_nothing() {
        let hosts = hosts(3);
        assert_eq!((hosts.current(), hosts.behind(0), hosts.current()), (0, 1, 1));
        assert_eq!((hosts.behind(0), hosts.current()), (1, 1));
        assert_eq!((hosts.behind(1), hosts.behind(2), hosts.current()), (2, 0, 0));
        assert!(Hosts::new(Vec::new()).is_err());
    }
}
