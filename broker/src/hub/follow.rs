//! A hub that follows another one: it takes pages in, and asks for current values when they are wanted.

use std::task::{Context, Poll, Waker};
use std::time::Instant;

use walcast_wire::{Position, TopicPattern};

use super::asked::Lane;
use super::page::{Answer, Page, Remark};
use super::retained::Retained;
use super::{Hub, Inner};

impl Hub {
    /// From now on pages of another hub are taken, batches are not, and no values are held.
    pub fn follow_others(&self) {
        let mut woken = Vec::new();
        {
            let mut inner = self.inner.lock();
            if let Some(mut relay) = inner.relay.take() {
                relay.release(&mut woken);
            }
            if !std::mem::replace(&mut inner.follows, true) {
                inner.line.iter_mut().for_each(|line| line.others_led = true);
                inner.retained = Retained::default();
                // Who waits for values to become exact asks for them now.
                inner.registry.wake_parked(&mut woken);
            }
        }
        woken.into_iter().for_each(Waker::wake);
    }

    /// Takes a page in, as [`Self::ingest`] takes a batch; nothing unless it follows.
    pub fn follow(&self, page: &Page, now: Instant) {
        let mut woken = Vec::new();
        self.inner.lock().follow(page, now, &mut woken);
        woken.into_iter().for_each(Waker::wake);
    }

    /// What values somebody wants, once there is something. One task asks for each lane.
    pub fn poll_wanted(&self, lane: Lane, cx: &mut Context<'_>) -> Poll<Vec<TopicPattern>> {
        let question = self.inner.lock().asked.question(lane, cx.waker());
        if question.is_empty() { Poll::Pending } else { Poll::Ready(question) }
    }

    /// Values that were asked for are asked for anew: nothing came for a while that would say whether they hold.
    pub fn forget_values(&self) {
        self.inner.lock().asked.forget();
    }

    /// There is no answer: who waits will ask again.
    pub fn unanswered(&self) {
        let mut woken = Vec::new();
        {
            let inner = &mut *self.inner.lock();
            let waiting = inner.asked.woken();
            inner.registry.wake(waiting, &mut woken);
        }
        woken.into_iter().for_each(Waker::wake);
    }

    /// Takes the answer. Who waits for what it does not say will ask again.
    pub fn answer(&self, answer: Answer) {
        let mut woken = Vec::new();
        self.inner.lock().answer(answer, &mut woken);
        woken.into_iter().for_each(Waker::wake);
    }
}

impl Inner {
    fn follow(&mut self, page: &Page, now: Instant, woken: &mut Vec<Waker>) {
        if !self.follows {
            return;
        }
        self.enter(page.epoch, page.after, woken);
        let Some(line) = &mut self.line else { return };
        line.replay_until = line.replay_until.min(line.head);
        let before = line.head;
        if page.remarks.contains(&Remark::Values) {
            self.asked.forget();
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
                            self.asked.forget();
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
        let waiting = self.asked.reached(before);
        self.registry.wake(waiting, woken);
    }

    fn answer(&mut self, answer: Answer, woken: &mut Vec<Waker>) {
        let ours = self.line.as_ref().is_some_and(|line| line.epoch == answer.epoch);
        if ours && self.follows {
            self.asked.learn(answer);
        }
        let waiting = self.asked.woken();
        self.registry.wake(waiting, woken);
    }
}
