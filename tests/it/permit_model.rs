//! A model of the permits in which loom tries the orders in which things can happen: sidecars, a job, an operator who
//! turns maintenance mode on, waits and turns it off again, and another who may turn it off meanwhile, and on again.
//!
//! The functions under test are the real ones, `lock::enter` and `lock::settle`. The file and the lock are
//! modelled, each operation as one step, as the kernel does it. Who is refused the lock does not ask again: the orders
//! in which it was asked for later are tried, too.
//!
//! One participant is tried with both operators in every order. With more participants there are millions of orders:
//! those are tried in which steps are interrupted by those of others at most so many times as [`ALL`] says. Broken
//! protocols are found out within these limits.

use std::sync::{Arc, Mutex};
use std::thread::panicking;

use loom::sync::atomic::{AtomicUsize, Ordering};
use pitstop::maintenance::lock::{self, Entry};

/// Somebody holds a lock that excludes this one.
#[derive(Debug)]
struct Busy;

/// Maintenance mode is on.
#[derive(Debug)]
struct On;

/// What the participants share.
#[derive(Default)]
struct Volume {
    /// Counted up with every step: only there does loom let others go on.
    steps: AtomicUsize,
    world: Mutex<World>,
}

#[derive(Default)]
struct World {
    file: bool,
    /// How many share the lock.
    shared: usize,
    exclusive: bool,
    /// How many let work reach the data.
    open: usize,
    /// How often maintenance mode was turned off.
    disabled: usize,
    /// Somebody was told that maintenance is taken up, and nobody has turned it off since.
    taken_up: bool,
}

struct Permit(Arc<Volume>);

impl Drop for Permit {
    fn drop(&mut self) {
        if !panicking() {
            self.0.step(|world| world.shared -= 1);
        }
    }
}

struct Exclusive(Arc<Volume>);

impl Drop for Exclusive {
    fn drop(&mut self) {
        if !panicking() {
            self.0.step(|world| world.exclusive = false);
        }
    }
}

impl Volume {
    /// What takes no time: others go on before it or after it.
    fn step<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        self.steps.fetch_add(1, Ordering::SeqCst);
        self.note(change)
    }

    /// What belongs to the step before.
    fn note<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        change(&mut self.world.lock().unwrap())
    }

    fn look(&self) -> Option<On> {
        self.step(|world| world.file.then_some(On))
    }

    fn share(self: &Arc<Self>) -> Result<Arc<Permit>, Busy> {
        self.step(|world| match world.exclusive {
            true => Err(Busy),
            false => {
                world.shared += 1;
                Ok(Arc::new(Permit(self.clone())))
            }
        })
    }

    fn exclude(self: &Arc<Self>) -> Result<Exclusive, Busy> {
        self.step(|world| match world.exclusive || world.shared > 0 {
            true => Err(Busy),
            false => {
                world.exclusive = true;
                Ok(Exclusive(self.clone()))
            }
        })
    }

    fn enable(&self) {
        self.step(|world| world.file = true);
    }

    fn disable(&self) {
        self.step(|world| {
            world.file = false;
            world.taken_up = false;
            world.disabled += 1;
        });
    }

    fn open(&self) {
        self.note(|world| {
            world.open += 1;
            assert!(!world.taken_up, "one opens after maintenance was taken up");
        });
    }

    fn close(&self) {
        self.note(|world| world.open -= 1);
    }
}

type Held = Option<Arc<Permit>>;
type Entered = Result<Entry<Arc<Permit>, On>, Busy>;
type Looked<'a> = &'a mut dyn FnMut();

/// How the participants go about it.
#[derive(Clone, Copy)]
struct Protocol {
    enter: fn(&Arc<Volume>, Held) -> Entered,
    /// The second parameter is called with each look.
    settle: fn(&Arc<Volume>, Looked) -> Result<bool, Busy>,
}

const REAL: Protocol = Protocol {
    enter: |volume, held| lock::enter(|| Ok(volume.look()), || held.map_or_else(|| volume.share(), Ok)),
    settle: |volume, looked| {
        let look = || {
            let seen = volume.look();
            looked();
            Ok(seen)
        };
        lock::settle(|| volume.exclude(), look)
    },
};

type Actor = fn(&Arc<Volume>, Protocol);

/// Looks twice. Once open it stays so until it looks again; if maintenance mode is on then, it closes, and only then
/// gives the permit back.
fn sidecar(volume: &Arc<Volume>, protocol: Protocol) {
    let mut permit = None;
    for _ in 0..2 {
        match (protocol.enter)(volume, permit.clone()) {
            Ok(Entry::Open(held)) => {
                if permit.replace(held).is_none() {
                    volume.open();
                }
            }
            Ok(Entry::Closed(On)) => {
                if permit.is_some() {
                    volume.close();
                }
                permit = None;
            }
            Err(Busy) => {}
        }
    }
    if permit.is_some() {
        volume.step(|_| ());
        volume.close();
    }
}

/// Works for a step.
fn job(volume: &Arc<Volume>, protocol: Protocol) {
    if let Ok(Entry::Open(_permit)) = (protocol.enter)(volume, None) {
        volume.open();
        volume.step(|_| ());
        volume.close();
    }
}

/// Turns maintenance mode on, asks whether it is taken up, and turns it off.
fn operator(volume: &Arc<Volume>, protocol: Protocol) {
    volume.enable();
    let mut disabled = 0;
    let settled = (protocol.settle)(volume, &mut || disabled = volume.note(|world| world.disabled));
    if let Ok(true) = settled {
        volume.note(|world| {
            world.taken_up = world.disabled == disabled;
            assert!(!world.taken_up || world.open == 0, "one is open although maintenance was taken up");
        });
    }
    volume.disable();
}

fn second_operator(volume: &Arc<Volume>, _: Protocol) {
    volume.disable();
}

/// Turns it off and on again.
fn restless_operator(volume: &Arc<Volume>, _: Protocol) {
    volume.disable();
    volume.enable();
}

/// Who acts beside the operator, with how many interruptions; `None` is every order.
const ALL: [(&[Actor], Option<usize>); 7] = [
    (&[job, restless_operator], None),
    (&[sidecar, restless_operator], Some(3)),
    (&[sidecar, second_operator], None),
    (&[sidecar, job], Some(3)),
    (&[sidecar, sidecar], Some(3)),
    (&[sidecar, sidecar, job], Some(2)),
    (&[sidecar, sidecar, job, second_operator], Some(1)),
];

fn act(protocol: Protocol, others: &'static [Actor], interruptions: Option<usize>) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = interruptions;
    model.check(move || {
        let volume = Arc::new(Volume::default());
        for other in others {
            let volume = volume.clone();
            loom::thread::spawn(move || other(&volume, protocol));
        }
        operator(&volume, protocol);
    });
}

#[test]
fn nobody_is_open_once_maintenance_is_taken_up_until_somebody_turns_it_off() {
    for (others, interruptions) in ALL {
        act(REAL, others, interruptions);
    }
}

#[test]
#[should_panic(expected = "one opens after maintenance was taken up")]
fn a_permit_taken_after_the_look_would_not_do() {
    let look_then_take = Protocol {
        enter: |volume, held| match volume.look() {
            Some(On) => Ok(Entry::Closed(On)),
            None => Ok(Entry::Open(held.map_or_else(|| volume.share(), Ok)?)),
        },
        ..REAL
    };
    act(look_then_take, &[sidecar, sidecar], Some(3));
}

#[test]
#[should_panic(expected = "one is open although maintenance was taken up")]
fn waiting_without_the_lock_would_not_do() {
    let only_look = Protocol {
        settle: |volume, looked| {
            let seen = volume.look();
            looked();
            Ok(seen.is_some())
        },
        ..REAL
    };
    act(only_look, &[sidecar, sidecar], Some(3));
}

#[test]
#[should_panic(expected = "one is open although maintenance was taken up")]
fn letting_go_of_the_lock_before_the_look_would_not_do() {
    let let_go_early = Protocol {
        settle: |volume, looked| {
            drop(volume.exclude()?);
            let seen = volume.look();
            looked();
            Ok(seen.is_some())
        },
        ..REAL
    };
    act(let_go_early, &[job, restless_operator], None);
}
