//! A hub that follows another one: it takes pages in, and asks for current values when they are wanted.

use std::task::{Context, Poll, Waker};
use std::time::Instant;

use walcast_wire::{Position, TopicPattern};

use super::asked::Asked;
use super::page::{Answer, Page, Remark};
use super::retained::Retained;
use super::{Hub, Inner};

impl Hub {
    /// Takes a page in, as [`Self::ingest`] takes a batch. From now on the hub holds no values of its own.
    pub fn follow(&self, page: &Page, now: Instant) {
        let mut woken = Vec::new();
        self.inner.lock().follow(page, now, self.config.asked_bytes, &mut woken);
        woken.into_iter().for_each(Waker::wake);
    }

    /// What values somebody wants, once there is something. One task asks.
    pub fn poll_wanted(&self, cx: &mut Context<'_>) -> Poll<Vec<TopicPattern>> {
        let mut inner = self.inner.lock();
        let asked = inner.asked.get_or_insert_with(|| Asked::new(self.config.asked_bytes));
        let question = asked.question();
        if question.is_empty() {
            asked.asker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(question)
    }

    /// Takes the answer. Who waits for what it does not say will ask again.
    pub fn answer(&self, answer: Answer) {
        let mut woken = Vec::new();
        self.inner.lock().answer(answer, &mut woken);
        woken.into_iter().for_each(Waker::wake);
    }
}

impl Inner {
    fn follow(&mut self, page: &Page, now: Instant, asked_bytes: u64, woken: &mut Vec<Waker>) {
        if self.asked.is_none() {
            self.asked = Some(Asked::new(asked_bytes));
            self.retained = Retained::default();
            // Who waits for values to become exact asks for them now.
            self.registry.wake_parked(woken);
        }
        self.enter(page.epoch, page.after, woken);
        let Some(line) = &mut self.line else { return };
        line.replay_until = line.replay_until.min(line.head);
        if page.remarks.contains(&Remark::Values) {
            self.asked.iter_mut().for_each(Asked::forget);
        }
        if page.upto > line.head {
            for remark in &page.remarks {
                match remark {
                    Remark::Gap(position) if *position > line.head => {
                        self.registry.notify_all(line.head, woken);
                        self.history.restart(*position);
                        line.gap = *position;
                    }
                    Remark::Withdrawn(floor, topics) => {
                        if line.withdrawn.take(*floor, topics) {
                            self.registry.notify_all(line.head, woken);
                        }
                    }
                    Remark::Gap(_) | Remark::Values => {}
                }
            }
            let fresh = page.events.partition_point(|event| event.position() <= line.head);
            for event in &page.events[fresh..] {
                self.registry.notify(event.topic(), event.position(), woken);
                self.history.push(std::sync::Arc::clone(event), now);
            }
            line.head = page.upto;
            self.history.evict(now, Position::MAX);
            line.withdrawn.forget(self.history.floor());
        }
        self.wake_those_who_ask(woken);
    }

    fn answer(&mut self, answer: Answer, woken: &mut Vec<Waker>) {
        let ours = self.line.as_ref().is_some_and(|line| line.epoch == answer.epoch);
        if let Some(asked) = self.asked.as_mut().filter(|_| ours) {
            asked.learn(answer);
        }
        self.wake_those_who_ask(woken);
    }

    fn wake_those_who_ask(&mut self, woken: &mut Vec<Waker>) {
        let Some(asked) = &mut self.asked else { return };
        for id in std::mem::take(&mut asked.waiting) {
            woken.extend(self.registry.get(id).and_then(|waiter| waiter.waker.take()));
        }
    }
}
