//! What a traveller asked and was told of late, for whoever has to find out why its copy is wrong.

use std::collections::VecDeque;

/// Steps that are kept, and how much of each: the beginning tells where it stands.
const STEPS: usize = 50;
const LONGEST: usize = 2_000;

/// Printed where a traveller fails, and for those that are dropped with it: what others were told at that
/// time is part of the story.
#[derive(Debug)]
pub(super) struct Trail {
    who: String,
    steps: VecDeque<String>,
}

impl Trail {
    pub(super) fn of(who: String) -> Self {
        Trail { who, steps: VecDeque::new() }
    }

    pub(super) fn note(&mut self, mut step: String) {
        if let Some((end, _)) = step.char_indices().nth(LONGEST) {
            step.truncate(end);
        }
        if self.steps.len() == STEPS {
            self.steps.pop_front();
        }
        self.steps.push_back(step);
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let steps: Vec<_> = self.steps.iter().map(String::as_str).collect();
            eprintln!("The last steps of {}:\n  {}", self.who, steps.join("\n  "));
        }
    }
}
