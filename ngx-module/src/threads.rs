//! The surroundings in which threads are started.
//!
//! A thread inherits its starter's signal mask and CPU affinity, and so do the threads that
//! libraries start in their turn. nginx's main thread is the only one that may receive signals:
//! elsewhere they would interrupt system calls without waking nginx. And a worker may be bound to
//! one CPU (`worker_cpu_affinity`), which must not bind the threads beside it.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::sync::OnceLock;

/// The affinity that nginx itself was started with.
static AFFINITY: OnceLock<Option<libc::cpu_set_t>> = OnceLock::new();

/// Signals that a thread raises by what it does; blocking those is undefined.
const OWN_FAULTS: [libc::c_int; 4] = [libc::SIGILL, libc::SIGFPE, libc::SIGSEGV, libc::SIGBUS];

/// Remembers the affinity that threads get. Called before nginx makes workers, hence before it
/// binds them.
pub(crate) fn remember_affinity() {
    AFFINITY.get_or_init(affinity);
}

/// Runs `start`, which starts threads, with all signals blocked and the remembered affinity.
pub(crate) fn undisturbed<T>(start: impl FnOnce() -> T) -> T {
    /// Restores by drop, so that a panic in between changes nothing for nginx.
    struct Restore {
        signals: Option<libc::sigset_t>,
        affinity: Option<libc::cpu_set_t>,
    }
    impl Drop for Restore {
        fn drop(&mut self) {
            if let Some(signals) = &self.signals {
                // SAFETY: the mask was filled by pthread_sigmask; a null old mask is allowed.
                unsafe {
                    libc::pthread_sigmask(libc::SIG_SETMASK, signals, std::ptr::null_mut());
                }
            }
            if let Some(affinity) = &self.affinity {
                set_affinity(affinity);
            }
        }
    }
    let wanted = AFFINITY.get().and_then(Option::as_ref);
    let restore = Restore { signals: block_signals(), affinity: wanted.and_then(|_| affinity()) };
    if let (Some(wanted), Some(_)) = (wanted, &restore.affinity) {
        set_affinity(wanted);
    }
    start()
}

/// Lets the calling thread have the CPU and the disk only when nobody else wants them: hashing must
/// not be felt by requests.
pub(crate) fn idle() {
    // SAFETY: the call takes a number and a structure that it only reads, for which zero is valid; it
    // affects the calling thread alone. Where it is refused, it is merely less polite.
    unsafe {
        let parameters: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters);
    }
    idle_disk();
}

/// The same, for the disk alone.
pub(crate) fn idle_disk() {
    /// `ioprio_set(2)`: the calling thread, and the idle class in the class's bits.
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const IOPRIO_CLASS_IDLE: libc::c_int = 3 << 13;
    // SAFETY: the call takes numbers, and affects the calling thread alone; refused, as above.
    unsafe {
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_CLASS_IDLE);
    }
}

/// The mask before, unless it could not be changed.
fn block_signals() -> Option<libc::sigset_t> {
    let mut all = MaybeUninit::uninit();
    let mut before = MaybeUninit::uninit();
    // SAFETY: the sets are written by sigfillset and pthread_sigmask before they are read, and are
    // of the type that these functions take.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        for signal in OWN_FAULTS {
            libc::sigdelset(all.as_mut_ptr(), signal);
        }
        let done = libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        (done == 0).then(|| before.assume_init())
    }
}

/// The calling thread's affinity; none on a machine with more CPUs than the set holds, where
/// threads keep what they inherit.
fn affinity() -> Option<libc::cpu_set_t> {
    // SAFETY: a cpu_set_t is plain bits, for which zero is valid, and the kernel writes no more than
    // the size that it is told.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        (libc::sched_getaffinity(0, size_of_val(&set), &mut set) == 0).then_some(set)
    }
}

/// Best effort: the kernel refuses CPUs that were taken away meanwhile, and the threads then run
/// where nginx runs.
fn set_affinity(set: &libc::cpu_set_t) {
    // SAFETY: the set is valid for reads of its size.
    unsafe {
        libc::sched_setaffinity(0, size_of_val(set), set);
    }
}
