//! Taking back what an ADD did when it does not finish: newest first, every step tried, nothing kept silent.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::cni::{Error, Result};
use crate::kernel::Kernel;

type Step<'a> = Box<dyn FnOnce(&mut Kernel) -> Result<()> + 'a>;

/// What has been done so far, as the steps that take it back.
#[derive(Default)]
pub struct Undo<'a> {
    steps: Vec<Step<'a>>,
}

impl<'a> Undo<'a> {
    /// Remembers how to take back what is about to be done or has just been done. Steps must succeed when there is
    /// nothing (left) to take back.
    pub fn push(&mut self, step: impl FnOnce(&mut Kernel) -> Result<()> + 'a) {
        self.steps.push(Box::new(step));
    }

    fn run(self, kernel: &mut Kernel) -> Vec<Error> {
        self.steps.into_iter().rev().filter_map(|step| step(kernel).err()).collect()
    }

    /// Takes everything back because of an error: that error, with what could not be taken back in its details.
    fn after(self, err: Error, kernel: &mut Kernel) -> Error {
        let left: Vec<String> = self.run(kernel).iter().map(ToString::to_string).collect();
        if left.is_empty() { err } else { err.with_left(&left.join("; ")) }
    }
}

/// Runs `work`; if it fails or panics, takes back what it pushed on the [`Undo`] it was given.
///
/// # Errors
/// The first error, with what could not be taken back in its details.
pub fn or_take_back<'a, T>(
    kernel: &mut Kernel,
    work: impl FnOnce(&mut Kernel, &mut Undo<'a>) -> Result<T>,
) -> Result<T> {
    let mut undo = Undo::default();
    let worked = catch_unwind(AssertUnwindSafe(|| work(kernel, &mut undo)));
    match worked {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(err)) => Err(undo.after(err, kernel)),
        Err(panic) => {
            undo.run(kernel);
            resume_unwind(panic)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn steps_are_taken_back_newest_first_and_all_of_them() {
        let log = RefCell::new(Vec::new());
        let result: Result<()> = or_take_back(&mut Kernel::new(false), |_, undo| {
            undo.push(|_| {
                log.borrow_mut().push("first");
                Ok(())
            });
            undo.push(|_| {
                log.borrow_mut().push("second");
                Err(Error::internal("second stays"))
            });
            Err(Error::config("why").with_details("details"))
        });
        assert_eq!(*log.borrow(), ["second", "first"]);
        let err = result.unwrap_err();
        assert_eq!((err.msg(), err.details()), ("why", "details; not taken back: second stays"));
    }

    #[test]
    fn a_panic_takes_back_too() {
        let log = RefCell::new(0);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            or_take_back::<()>(&mut Kernel::new(false), |_, undo| {
                undo.push(|_| {
                    *log.borrow_mut() += 1;
                    Ok(())
                });
                panic!("expected by this test")
            })
        }));
        assert!(caught.is_err());
        assert_eq!(*log.borrow(), 1);
    }

    #[test]
    fn nothing_is_taken_back_after_success() {
        let result = or_take_back(&mut Kernel::new(false), |_, undo| {
            undo.push(|_| Err(Error::internal("must not run")));
            Ok(5)
        });
        assert_eq!(result.unwrap(), 5);
    }
}
