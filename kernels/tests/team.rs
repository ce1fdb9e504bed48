//! A team's regions: all who attend take part, nobody is waited for who does not, and a region is over when it says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use torchless_kernels::Team;

/// Waits for `condition`; false after ten seconds.
fn soon(condition: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > Duration::from_secs(10) {
            return false;
        }
        thread::yield_now();
    }
    true
}

/// Runs `lead` with `members - 1` threads attending.
fn with_members(team: &Team, lead: impl FnOnce()) {
    thread::scope(|threads| {
        team.lead(|| {
            for member in 1..team.members() {
                threads.spawn(move || team.attend(member));
            }
            lead();
        });
    });
}

#[test]
fn all_members_take_part() {
    let team = Team::new(4);
    with_members(&team, || {
        for _ in 0..100 {
            let here = AtomicUsize::new(0);
            team.run(&|| {
                here.fetch_add(1, SeqCst);
                assert!(soon(|| here.load(SeqCst) >= 4), "{} of 4 came", here.load(SeqCst));
                true
            });
        }
    });
}

#[test]
fn a_region_is_over_when_all_calls_have_returned() {
    for members in [1, 2, 3, 8] {
        let team = Team::new(members);
        with_members(&team, || {
            for region in 0..5000 {
                let (left, running, done) =
                    (AtomicUsize::new(region % 20), AtomicUsize::new(0), AtomicUsize::new(0));
                team.run(&|| {
                    running.fetch_add(1, SeqCst);
                    let mut any = false;
                    while left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
                        if region % 7 == 0 {
                            thread::yield_now();
                        }
                        done.fetch_add(1, SeqCst);
                        any = true;
                    }
                    running.fetch_sub(1, SeqCst);
                    any
                });
                assert_eq!((running.load(SeqCst), done.load(SeqCst)), (0, region % 20));
            }
        });
    }
}

#[test]
fn who_does_not_come_is_not_waited_for() {
    let team = Team::new(3);
    let calls = AtomicUsize::new(0);
    let work = || calls.fetch_add(1, SeqCst) == 0;
    team.run(&work);
    team.lead(|| team.run(&work));
    assert_eq!(calls.load(SeqCst), 2);
    // Nobody leads any more.
    team.attend(1);
}

#[test]
fn a_region_within_a_region_is_done_alone() {
    let team = Team::new(2);
    with_members(&team, || {
        for _ in 0..1000 {
            let (left, inner) = (AtomicUsize::new(10), AtomicUsize::new(0));
            team.run(&|| {
                let mut any = false;
                while left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
                    let mine = thread::current().id();
                    team.run(&|| {
                        assert_eq!(thread::current().id(), mine);
                        inner.fetch_add(1, SeqCst);
                        true
                    });
                    any = true;
                }
                any
            });
            assert_eq!(inner.load(SeqCst), 10);
        }
    });
}

#[test]
fn a_member_may_begin_a_region_when_the_leader_has_done_its_part() {
    // Not scoped: a team that does not come to an end fails the test, and is left behind.
    let done = Arc::new(AtomicUsize::new(0));
    let leader = {
        let done = Arc::clone(&done);
        move || {
            let team = Team::new(2);
            let leader = thread::current().id();
            let (begun, called) = (AtomicBool::new(false), AtomicBool::new(false));
            with_members(&team, || {
                team.run(&|| {
                    if thread::current().id() == leader {
                        return soon(|| begun.load(SeqCst));
                    }
                    if !called.swap(true, SeqCst) {
                        begun.store(true, SeqCst);
                        // The leader now waits for this call.
                        thread::sleep(Duration::from_millis(50));
                        team.run(&|| done.fetch_add(1, SeqCst) == 0);
                    }
                    false
                });
            });
            done.fetch_add(10, SeqCst);
        }
    };
    thread::spawn(leader);
    assert!(soon(|| done.load(SeqCst) == 11), "{}", done.load(SeqCst));
}

#[test]
fn after_a_member_has_panicked_the_others_go_on() {
    let team = Team::new(2);
    let (left, done) = (AtomicUsize::new(50), AtomicUsize::new(0));
    thread::scope(|threads| {
        let leader = thread::current().id();
        let member = team.lead(|| {
            let member = threads.spawn(|| team.attend(1));
            team.run(&|| {
                assert_eq!(thread::current().id(), leader, "meant to fail");
                soon(|| member.is_finished())
            });
            team.run(&|| {
                while left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
                    done.fetch_add(1, SeqCst);
                }
                true
            });
            member
        });
        assert!(member.join().is_err());
        assert_eq!(done.load(SeqCst), 50);
    });
}
