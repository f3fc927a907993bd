//! The hand-over of one answer from the worker to whoever waits: a thread or a task.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use super::QueueError;
use crate::tensor::Tensor;

/// How long a waiting thread spins before it sleeps: waking it costs about as much, and answers
/// of small models come within it.
const SPIN: Duration = Duration::from_micros(20);

type Answer = Result<Vec<Tensor>, QueueError>;

/// A request's answer to come: a future, and for threads [`Ticket::wait`]. Dropping it cancels
/// the request; what is not in a batch yet is then not computed.
#[derive(Debug)]
pub struct Ticket {
    slot: Arc<Slot>,
}

/// The worker's end. Dropped without an answer it answers [`QueueError::Closed`].
#[derive(Debug)]
pub(super) struct Reply {
    slot: Option<Arc<Slot>>,
}

#[derive(Debug, Default)]
struct Slot {
    answered: AtomicBool,
    cancelled: AtomicBool,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    answer: Option<Answer>,
    waker: Option<Waker>,
    sleeping: bool,
}

/// Both ends of one hand-over.
pub(super) fn ticket() -> (Reply, Ticket) {
    let slot = Arc::new(Slot::default());
    (Reply { slot: Some(slot.clone()) }, Ticket { slot })
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, answer: Answer) {
        let mut state = self.lock();
        state.answer = Some(answer);
        let waker = state.waker.take();
        let sleeping = state.sleeping;
        self.answered.store(true, Ordering::Release);
        drop(state);
        if sleeping {
            self.wake.notify_one();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Reply {
    /// Whether nobody waits for the answer any more.
    pub fn is_cancelled(&self) -> bool {
        self.slot.as_ref().is_some_and(|slot| slot.cancelled.load(Ordering::Relaxed))
    }

    pub fn send(mut self, answer: Answer) {
        if let Some(slot) = self.slot.take() {
            slot.answer(answer);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            slot.answer(Err(QueueError::Closed));
        }
    }
}

impl Ticket {
    /// Waits for the outputs, in the model's order, with as many rows as the request had.
    ///
    /// # Errors
    /// See [`QueueError`].
    pub fn wait(self) -> Result<Vec<Tensor>, QueueError> {
        self.wait_until(None).unwrap_or(Err(QueueError::Closed))
    }

    /// [`Ticket::wait`] for at most so long; the ticket stays good where that was not enough.
    ///
    /// # Errors
    /// The ticket itself, when there is no answer yet.
    pub fn wait_timeout(
        self,
        timeout: Duration,
    ) -> Result<Result<Vec<Tensor>, QueueError>, Ticket> {
        // A time beyond what the clock can hold never comes.
        self.wait_until(Instant::now().checked_add(timeout)).ok_or(self)
    }

    fn wait_until(&self, end: Option<Instant>) -> Option<Answer> {
        let spin = Instant::now() + SPIN;
        while !self.slot.answered.load(Ordering::Acquire) && Instant::now() < spin {
            std::hint::spin_loop();
        }
        let mut state = self.slot.lock();
        loop {
            if let Some(answer) = state.answer.take() {
                return Some(answer);
            }
            state.sleeping = true;
            let wake = &self.slot.wake;
            state = match end.map(|end| end.saturating_duration_since(Instant::now())) {
                None => wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return None,
                Some(left) => {
                    wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl Future for Ticket {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let mut state = self.slot.lock();
        match state.answer.take() {
            Some(answer) => Poll::Ready(answer),
            // Polled again after its answer, against the contract of futures: there is no other.
            None if self.slot.answered.load(Ordering::Acquire) => {
                Poll::Ready(Err(QueueError::Closed))
            }
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.slot.cancelled.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, task::Wake, thread};

    use super::*;

    /// Wakes by unparking the thread that polls.
    struct Unpark(thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    fn block_on<F: Future + Unpin>(mut future: F) -> F::Output {
        let waker = Arc::new(Unpark(thread::current())).into();
        let mut context = Context::from_waker(&waker);
        loop {
            match Pin::new(&mut future).poll(&mut context) {
                Poll::Ready(output) => return output,
                Poll::Pending => thread::park(),
            }
        }
    }

    #[test]
    fn threads_and_tasks_get_the_answer() {
        for early in [true, false] {
            for task in [true, false] {
                let (reply, ticket) = ticket();
                let (go, gone) = mpsc::channel();
                let sender = thread::spawn(move || {
                    gone.recv().unwrap();
                    if !early {
                        thread::sleep(Duration::from_millis(2));
                    }
                    reply.send(Ok(Vec::new()));
                });
                go.send(()).unwrap();
                let mut sender = Some(sender);
                if early {
                    sender.take().unwrap().join().unwrap();
                }
                let answer = if task { block_on(ticket) } else { ticket.wait() };
                assert!(answer.unwrap().is_empty());
                sender.into_iter().for_each(|s| s.join().unwrap());
            }
        }
    }

    #[test]
    fn a_timeout_leaves_the_ticket_good() {
        let (reply, ticket) = ticket();
        let ticket = ticket.wait_timeout(Duration::from_millis(1)).unwrap_err();
        reply.send(Ok(Vec::new()));
        assert!(ticket.wait_timeout(Duration::MAX).unwrap().is_ok());
    }

    #[test]
    fn dropped_ends_are_noticed() {
        let (reply, dropped) = ticket();
        assert!(!reply.is_cancelled());
        drop(dropped);
        assert!(reply.is_cancelled());
        let (reply, ticket) = ticket();
        drop(reply);
        assert!(matches!(ticket.wait(), Err(QueueError::Closed)));
    }
}
