//! Where a rule's columns are in the rows of one relation, looked up once per relation.
//!
//! The stream describes a table anew when it was altered, as a new relation object; the object's identity
//! is the key of the cache, so that old rows are read by the old description.

use std::collections::HashMap;
use std::sync::Arc;

use super::rule::Rule;
use crate::event::Relation;
use crate::value::ValueKind;

/// Relations remembered; beyond it the cache starts anew.
const RELATIONS_MAX: usize = 1024;

/// A rule, bound to a relation.
#[derive(Debug)]
pub(super) struct Binding {
    /// The rule's number.
    pub(super) rule: usize,
    /// The published columns that the relation has.
    pub(super) fields: Box<[Field]>,
    /// The rule publishes a column that the relation has not.
    pub(super) lacks: bool,
    /// Where the template's columns are.
    pub(super) topic: Box<[Option<usize>]>,
    /// Where the condition's columns are.
    pub(super) when: Box<[Option<usize>]>,
}

/// A published column.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) index: usize,
    pub(super) name: Arc<str>,
    /// The name as JSON, and a colon.
    pub(super) label: Box<[u8]>,
    pub(super) kind: ValueKind,
    pub(super) key: bool,
    pub(super) in_topic: bool,
}

impl Binding {
    pub(super) fn new(number: usize, rule: &Rule, relation: &Relation) -> Self {
        let find = |name: &Arc<str>| relation.columns.iter().position(|column| column.name == *name);
        let topic: Box<[_]> = rule.template.names().iter().map(find).collect();
        let wanted: Vec<_> = match &rule.columns {
            Some(names) => names.iter().map(find).collect(),
            None => (0..relation.columns.len()).map(Some).collect(),
        };
        let field = |index: usize| {
            let column = relation.columns.get(index)?;
            let mut label = serde_json::to_vec(&*column.name).ok()?;
            label.push(b':');
            Some(Field {
                index,
                name: Arc::clone(&column.name),
                label: label.into(),
                kind: column.kind.clone(),
                key: column.key,
                in_topic: topic.contains(&Some(index)),
            })
        };
        let fields: Box<[_]> = wanted.iter().flatten().filter_map(|index| field(*index)).collect();
        let when = rule.when.iter().flat_map(|when| when.columns()).map(find).collect();
        Self { rule: number, lacks: fields.len() < wanted.len(), fields, topic, when }
    }
}

/// The bindings of the relations seen so far; `None` where no rule covers the table.
#[derive(Debug, Default)]
pub(super) struct Bindings {
    // The relation is kept so that its address names it alone.
    known: HashMap<usize, (Arc<Relation>, Option<Binding>)>,
}

impl Bindings {
    pub(super) fn get(
        &mut self,
        relation: &Arc<Relation>,
        bind: impl FnOnce() -> Option<Binding>,
    ) -> Option<&Binding> {
        let address = Arc::as_ptr(relation) as usize;
        if self.known.len() >= RELATIONS_MAX && !self.known.contains_key(&address) {
            self.known.clear();
        }
        let (_, binding) = self.known.entry(address).or_insert_with(|| (Arc::clone(relation), bind()));
        binding.as_ref()
    }

    pub(super) fn clear(&mut self) {
        self.known.clear();
    }
}
