//! How often a value is looked at while it is validated: definitions that are shared count again wherever they are referred to, so a short
//! schema can ask for more than any time there is.

use std::collections::HashMap;

use serde_json::Value;

use super::{Id, JsonSchema};

/// How a schema leads to one that stands within it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// For the same value: `allOf`, `$ref`, …
    Same,
    /// For one member of it.
    Member(String),
    /// For one item of it.
    Item(usize),
    /// For each of its members or items.
    Every,
}

/// Of one schema with everything that it refers to, looked at for one value and one in it, and one in that.
const EXPANDED_MAX: u64 = 100_000;
/// Of one value.
const VISITS_MAX: u64 = 2_000_000;
/// Schemas smaller than that, which do not contain themselves, are small for every value.
const SMALL: u64 = 1_000;

impl JsonSchema {
    /// Refuses a schema that grows without bound when its references are followed; notes whether values need to be looked at first.
    pub(super) fn measure(&mut self) -> Result<(), String> {
        let mut known = vec![None; self.all.len()];
        let mut recursive = false;
        let size = self.size(self.root, &mut known, &mut recursive);
        if size > EXPANDED_MAX {
            return Err(format!(
                "its references lead to more than {EXPANDED_MAX} schemas when each is followed; refer less often to what refers on"
            ));
        }
        self.heavy = recursive || size > SMALL;
        Ok(())
    }

    /// 0 while it is being found.
    fn size(&self, id: Id, known: &mut [Option<u64>], recursive: &mut bool) -> u64 {
        match known[id] {
            Some(0) => {
                *recursive = true;
                return 1;
            }
            Some(size) => return size,
            None => known[id] = Some(0),
        }
        let (mut same, mut below) = (1u64, 0);
        for (step, next) in &self.steps[id] {
            let size = self.size(*next, known, recursive);
            match step {
                Step::Same => same = same.saturating_add(size),
                _ => below = size.max(below),
            }
        }
        let size = same.saturating_add(below);
        known[id] = Some(size);
        size
    }

    /// An error where validating this value would take too long.
    pub(super) fn bears(&self, value: &Value) -> Result<(), String> {
        if !self.heavy || self.visits(self.root, value, &mut HashMap::new()) <= VISITS_MAX {
            return Ok(());
        }
        Err(format!("the schema would be applied more than {VISITS_MAX} times within the value; refer less often to what refers on"))
    }

    fn visits(&self, id: Id, value: &Value, known: &mut HashMap<(Id, *const Value), u64>) -> u64 {
        let pair = (id, std::ptr::from_ref(value));
        if let Some(visits) = known.get(&pair) {
            return *visits;
        }
        // One that refers to itself for the same value is not followed.
        known.insert(pair, 1);
        let mut visits = 1u64;
        for (step, next) in &self.steps[id] {
            let mut add = |value: &Value| visits = visits.saturating_add(self.visits(*next, value, known));
            match (step, value) {
                (Step::Same, _) => add(value),
                (Step::Member(name), Value::Object(members)) => members.get(name).into_iter().for_each(add),
                (Step::Item(at), Value::Array(items)) => items.get(*at).into_iter().for_each(add),
                (Step::Every, Value::Object(members)) => members.values().for_each(add),
                (Step::Every, Value::Array(items)) => items.iter().for_each(add),
                _ => {}
            }
        }
        known.insert(pair, visits);
        visits
    }
}
